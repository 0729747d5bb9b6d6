"""Comparison of runs: which are taken, what differs, who wins; on rectangles whose figures are known."""

import json

import numpy as np
import pandas as pd
import pytest
from example_runs import CASES, SIZE, write_run, write_split
from test_statistics import simulate

from lib.config import Experiment
from lib.errors import InputError
from lib.evaluate import comparison
from lib.evaluate.evaluated_runs import choose_reference, find_runs
from lib.metrics import evaluate, region_figures
from lib.metrics.statistics import SUMMED, Resampled, resampled_sums
from lib.plots import style, tables
from lib.reports import comparison as comparison_figures
from lib.stores import LabelStore, PredictionStore

BETTER = CASES | {"missed": ([], CASES["missed"][0]), "false": ([], CASES["false"][0])}  # predicts what is true
SCORES = {"worse": [0.3, 0.9, 0.4, 0.6], "better": [0.5, 0.4, 0.45, 0.95]}


def evaluation_of(run, data, **changes):
    figures = evaluate(PredictionStore(run / "predictions/test"), LabelStore(data / "test"), 90)
    intervals = {"final_score": [0.1, 0.9]}
    content = {
        "split": "test",
        "threshold": 90,
        "figures": figures,
        "intervals": intervals,
        "trivial": {"f1_score": 0.1},
    }
    (run / "evaluation.json").write_text(json.dumps(content | changes))


@pytest.fixture
def folder(tmp_path):
    """Two evaluated runs: `better` predicts the regions as they are, `worse` misses one and invents two."""
    data = tmp_path / "data"
    write_split(data / "test")
    for name, cases, parameters in (("worse", CASES, {"lora_rank": 8}), ("better", BETTER, {"lr": 1e-3})):
        run = write_run(tmp_path / "runs" / name, data, cases, scores=SCORES[name], **parameters)
        evaluation_of(run, data)
    return tmp_path / "runs"


@pytest.fixture
def measured(folder):
    runs, _ = find_runs(folder, [], "test")
    return comparison.measure(runs)[0]


def test_all_evaluated_runs_are_found(folder):
    (folder / "unfinished").mkdir()
    runs, notes = find_runs(folder, [], "test")
    assert ([run.name for run in runs], notes) == (["better", "worse"], [])
    assert choose_reference(runs).name == "better"
    assert choose_reference(runs, "worse").name == "worse"
    assert [run.name for run in find_runs(folder, ["worse"], "test")[0]] == ["worse"]


def test_runs_that_do_not_fit_are_left_out_and_told(folder, tmp_path):
    evaluation_of(folder / "worse", tmp_path / "data", split="val")
    write_split(tmp_path / "else/test")
    for name in ("c", "d"):
        evaluation_of(write_run(folder / name, tmp_path / "data", BETTER), tmp_path / "data")
    evaluation_of(write_run(folder / "elsewhere", tmp_path / "else"), tmp_path / "else")
    evaluation_of(write_run(folder / "unlabelled", tmp_path / "data"), tmp_path / "data", figures=None)
    runs, notes = find_runs(folder, [], "test")
    assert [run.name for run in runs] == ["better", "c", "d"]
    assert "worse is left out: it was evaluated on val, not on test" in notes[1]
    assert "unlabelled is left out: test has no labels" in notes[0]
    assert notes[2].startswith("elsewhere is left out: it was evaluated on")
    with pytest.raises(InputError, match="evaluated on val"):
        find_runs(folder, ["worse"], "test")


def test_what_cannot_be_compared_is_named(folder):
    runs, _ = find_runs(folder, [], "test")
    with pytest.raises(InputError, match="no evaluated run third; evaluated are: better, worse"):
        find_runs(folder, ["third"], "test")
    with pytest.raises(InputError, match="no run 'third'; choose among better, worse"):
        choose_reference(runs, "third")
    with pytest.raises(InputError, match="no run that was evaluated on val"):
        find_runs(folder, [], "val")
    (folder / "worse/evaluation.json").write_text("{}")
    with pytest.raises(InputError, match="not what notebook 3 writes"):
        find_runs(folder, ["worse"], "test")


def test_final_scores_stand_beside_the_parameters_that_differ(folder):
    runs, _ = find_runs(folder, [], "test")
    score = {run.name: f"{run.evaluation['figures']['final_score']:.3f} (0.100 to 0.900)" for run in runs}
    rows = [["better", score["better"], "0", "0.001"], ["worse", score["worse"], "8", "0.0001"]]
    table = comparison.settings_table(runs[::-1])  # the best first, whatever the order
    assert (list(table.columns), table.to_numpy().tolist()) == (["run", "final score", "lora_rank", "lr"], rows)
    assert list(comparison.settings_table(runs[:1]).columns) == ["run", "final score"]


def test_an_ensemble_is_told_by_its_members(folder):
    members = {"runs": ["runs/worse", "runs/other"], "weights": None}
    (folder / "better" / "ensemble.json").write_text(json.dumps(members))
    runs, _ = find_runs(folder, [], "test")
    table = comparison.settings_table(runs)  # more parameters than runs: these run down
    assert table.set_index(table.columns[0]).loc["ensemble", ["better", "worse"]].tolist() == ["worse + other", ""]


def test_more_parameters_than_runs_run_down_the_page(folder):
    Experiment(experiment_name="worse", data_path=str(folder.parent / "data"), lora_rank=8, epoch=3).save(
        folder / "worse/config.yaml"
    )
    runs, _ = find_runs(folder, [], "test")
    table = comparison.settings_table(runs)
    assert list(table.columns) == ["parameter", "better", "worse"]
    assert list(table["parameter"]) == ["final score", "lora_rank", "epoch", "lr"]


def test_names_may_be_patterns(folder):
    assert [run.name for run in find_runs(folder, ["b*er"], "test")[0]] == ["better"]
    assert [run.name for run in find_runs(folder, ["worse", "*"], "test")[0]] == ["worse", "better"]
    with pytest.raises(InputError, match="no evaluated run x\\*"):
        find_runs(folder, ["worse", "x*"], "test")


def test_measured_figures_match_the_evaluation(folder):
    runs, _ = find_runs(folder, [], "test")
    _, notes = comparison.measure(runs)
    assert notes == []
    evaluation_of(folder / "worse", folder.parent / "data", figures={"f1_score": 0.99, "final_score": 0.5})
    runs, _ = find_runs(folder, [], "test")
    assert "worse: predictions are newer" in comparison.measure(runs)[1][0]


def test_paired_differences(measured):
    resampled = comparison.resample_runs(measured, 50)
    table = comparison.paired_differences(resampled, "better").set_index("figure")
    # better: 3 of 3 regions hit, none invented; worse: 2 of 3 hit, 2 of 4 predicted ones invented
    assert table.loc["recall", ["reference", "value"]].tolist() == pytest.approx([1, 2 / 3])
    assert table.loc["precision", ["reference", "value"]].tolist() == pytest.approx([1, 1 / 2])
    assert table.at["recall", "difference"] == pytest.approx(-1 / 3)
    assert (table["low"] <= table["high"]).all()
    assert "worse" in comparison.verdict(table.reset_index(), "better")
    assert "-0.333" in comparison.differences_table(table.reset_index(), "better").to_html()


def test_a_run_that_finds_nothing_is_not_called_out_of_date(folder, tmp_path):
    nothing = {id: (true, []) for id, (true, _) in CASES.items()}
    evaluation_of(write_run(folder / "nothing", tmp_path / "data", nothing), tmp_path / "data")
    runs, _ = find_runs(folder, ["nothing"], "test")
    assert runs[0].evaluation["figures"]["f1_score"] == 0
    assert comparison.measure(runs)[1] == []


def held_out_run(folder, data, ids):
    """A run evaluated on images of train that it held out."""
    run = write_run(folder, data, {id: BETTER[id] for id in ids}, split="held_out")
    figures = evaluate(PredictionStore(run / "predictions/held_out"), LabelStore(data / "train"), 90, ids=list(ids))
    content = {
        "split": "held_out",
        "threshold": 90,
        "figures": figures,
        "intervals": None,
        "trivial": {"f1_score": 0.1},
    }
    (run / "evaluation.json").write_text(json.dumps(content))


def test_runs_that_held_out_other_images_are_compared_on_the_common_ones(tmp_path):
    write_split(tmp_path / "data/train")
    for name, ids in {"a": ("perfect", "missed"), "b": ("missed", "perfect", "false"), "c": ("sound",)}.items():
        held_out_run(tmp_path / "runs" / name, tmp_path / "data", ids)
    runs, notes = find_runs(tmp_path / "runs", [], "held_out")
    assert [run.name for run in runs] == ["a", "b"]
    assert notes[0].startswith("c is left out: it shares no image with the others")
    assert "not the same images" in notes[1] and "2 images that all of them predicted" in notes[1]
    measured, notes = comparison.measure(runs)
    assert notes == []
    assert all(
        sorted(one.counts["id"]) == ["missed", "perfect"] == sorted(one.scores.index) for one in measured.values()
    )
    table = comparison.paired_differences(comparison.resample_runs(measured, 10), "a")
    assert table.set_index("figure").loc["f1_score", ["reference", "value"]].tolist() == pytest.approx([1, 1])
    assert "trivial" not in comparison.figures_table(runs, "held_out").to_html()
    assert find_runs(tmp_path / "runs", ["b"], "held_out")[1] == []


def equal_runs(seed: int, runs: int = 4, images: int = 100, n: int = 199) -> dict[str, Resampled]:
    """Runs of one skill on the same images, with their F1 in place of the final score."""
    rng, resampled, first = np.random.default_rng(seed), {}, None
    difficulty = rng.beta(4, 4, images)
    for number in range(runs):
        run = simulate(rng, images, 0.6, difficulty, like=first)
        first, counts = first or run, run[0][SUMMED].to_numpy(float)
        drawn = region_figures(dict(zip(SUMMED, resampled_sums(counts, n, seed).T, strict=True)))["f1_score"]
        value = float(region_figures(dict(zip(SUMMED, counts.sum(axis=0), strict=True)))["f1_score"])
        resampled[f"run{number}"] = Resampled({"final_score": value}, pd.DataFrame({"final_score": drawn}))
    return resampled


@pytest.mark.parametrize("reference", ["the best", "run0"])
def test_equal_runs_are_seldom_told_apart(reference):
    called = 0
    for seed in range(80):
        resampled = equal_runs(seed)
        best = max(resampled, key=lambda name: resampled[name].values["final_score"])
        table = comparison.paired_differences(resampled, best if reference == "the best" else reference)
        called += "beyond chance" in comparison.verdict(table, best)
    print(f"{called} of 80 comparisons of four equal runs call one different")
    assert called <= 9  # 4 expected, and three standard errors; without regard to the choice of the best it is 16


def test_a_better_run_is_found_among_equal_ones():
    resampled = equal_runs(1)
    best = resampled["run3"]
    resampled["run3"] = Resampled({"final_score": best.values["final_score"] + 0.15}, best.draws + 0.15)
    table = comparison.paired_differences(resampled, "run3").set_index("run")
    assert (table["p"] < 0.05).all() and (table["high"] < 0).all()  # interval and p say the same
    assert table.loc["run0", "difference"] == pytest.approx((table["low"] + table["high"])["run0"] / 2)


def test_an_undefined_figure_of_one_run_leaves_the_others_defined():
    resampled = equal_runs(1, runs=3)
    nothing = Resampled({"final_score": np.nan}, resampled["run2"].draws * np.nan)
    table = comparison.paired_differences(resampled | {"run2": nothing}, "run0").set_index("run")
    assert table.loc["run2", ["difference", "low", "high", "p"]].isna().all()
    assert table.loc["run1", ["difference", "low", "high", "p"]].notna().all()


def test_an_undefined_difference_is_a_dash():
    page = tables.differences_table({"a": {"plcc": (float("nan"), float("nan"), float("nan"), False)}}).to_html()
    assert ">-<" in page and "nan" not in page


def test_verdicts_tell_chance_from_difference():
    row = {"run": "a", "figure": "final_score", "difference": 0.1, "low": 0.05, "high": 0.2, "p": 0.01}
    beyond = "Better than b in final score, beyond chance: a +0.100 (+0.050 to +0.200, p = 0.01)."
    assert comparison.verdict(pd.DataFrame([row]), "b") == beyond
    assert "Worse than b" in comparison.verdict(pd.DataFrame([row | {"difference": -0.1}]), "b")
    assert "No different from b" in comparison.verdict(pd.DataFrame([row | {"p": 0.3}]), "b")
    three = comparison.verdict(pd.DataFrame([row, row | {"run": "c"}, row | {"run": "d", "p": 0.3}]), "b")
    assert [line.count("p = ") for line in three.splitlines()] == [2, 1]
    assert "only run" in comparison.verdict(pd.DataFrame([row]).head(0), "b")


def test_images_where_one_wins(measured):
    gains = comparison.image_gains(measured["worse"], measured["better"])
    assert gains.at["missed", "gain"] == pytest.approx(20000 / SIZE**2)
    assert gains.at["false", "gain"] == pytest.approx(7200 / SIZE**2)
    assert comparison.wins(gains, 5) == (["missed", "false"], [])
    assert comparison.wins(gains, 1) == (["missed"], [])
    assert comparison.wins(gains.assign(gain=-gains["gain"]), 1) == ([], ["missed"])


def test_figures_have_titles_and_sentences(measured):
    logs = {
        "better": [{"step": 1, "loss": 2.0}, {"step": 2, "val_final_score": 0.4}, {"step": 4, "val_final_score": 0.3}]
    }
    fig, says = comparison_figures.learning_curves(logs | {"worse": []})
    assert [ax.get_title() for ax in fig.axes] == ["Training loss", "Final score on validation"]
    assert says == "On validation better came furthest, to a final score of 0.400. Without metrics.jsonl: worse."
    assert "no run was validated" in comparison_figures.learning_curves({"worse": []})[1].lower()
    assert "scales: runs differ in score_loss" in comparison_figures.learning_curves(logs, ["lr", "score_loss"])[1]
    table = comparison.paired_differences(comparison.resample_runs(measured, 5), "better")
    assert len(comparison_figures.differences(table, "better").axes) == len(comparison.COMPARED)
    assert comparison_figures.differences(table.head(0), "better").axes
    _, says = comparison_figures.gains_figure(measured["worse"], measured["better"])
    assert says == "better has less wrong area than worse on 2 of 4 images, more on 0."
    (won, nothing), (_, lost) = comparison_figures.winners(measured["worse"], measured["better"], 2)
    assert (len(won.axes), nothing) == (8, "")
    assert lost == "There is no image where worse is better."


def test_the_table_of_figures_has_the_trivial_baseline(folder):
    runs, _ = find_runs(folder, [], "test")
    html = comparison.figures_table(runs, "test").to_html()
    assert "trivial baseline" in html
    assert "<small>0.10–0.90</small>" in html


def test_many_runs_can_be_told_apart_and_have_short_names():
    names = [f"sweep_demo_lora_rank{rank}_lr0.001_score_loss-mse-plcc-srcc" for rank in range(20)]
    found = {tuple(look.values()) for look in comparison_figures.looks(names).values()}
    assert len(found) == 20
    assert style.short_names(names)[names[2]] == "rank2_lr0.001_score_loss-mse-\nplcc-srcc"
    assert style.short_names(["demo_full", "demo_lora"]) == {"demo_full": "full", "demo_lora": "lora"}
    assert style.short_names(["demo_full"]) == {"demo_full": "demo_full"}
