"""Comparison of runs: which are taken, what differs, who is better, which parameter of a sweep mattered."""

import json

import numpy as np
import pandas as pd
import pytest
from example_runs import CASES, EVALUATION, write_run, write_split
from test_statistics import simulate

from lib import plots
from lib.errors import InputError
from lib.evaluate import comparison
from lib.evaluate.ceiling import annotator_ceiling
from lib.evaluate.comparison import choose_reference, find_runs, paired_differences
from lib.evaluate.parameter_effects import effects, factors
from lib.metrics.counts import challenge_figures, score_table, sweep
from lib.metrics.figures import region_figures
from lib.metrics.statistics import SUMMED, Resampled, resample, resampled_sums
from lib.stores import LabelStore, PredictionStore, open_split

BETTER = CASES | {"missed": ([], CASES["missed"][0]), "false": ([], CASES["false"][0])}  # predicts what is true
SCORES = {"worse": [0.3, 0.9, 0.4, 0.6], "better": [0.5, 0.4, 0.45, 0.95]}


def evaluation_of(run, data, split="test", **changes):
    store, labels = PredictionStore(run / "predictions" / split), open_split(data, split)
    figures = challenge_figures(sweep(store, labels, [90], store.ids), score_table(store, labels, store.ids))
    content = {"split": split, "threshold": 90, "figures": figures, "intervals": {"final_score": [0.1, 0.9]}}
    (run / "evaluation.json").write_text(json.dumps(content | changes))


@pytest.fixture
def folder(tmp_path):
    """Two evaluated runs: `better` predicts the regions as they are, `worse` misses one and invents two."""
    data = tmp_path / "data"
    write_split(data / "test")
    for name, cases, parameters in (("worse", CASES, {"lora_rank": 8}), ("better", BETTER, {"lr": 1e-3})):
        evaluation_of(write_run(tmp_path / "runs" / name, data, cases, scores=SCORES[name], **parameters), data)
    return tmp_path / "runs"


def test_evaluated_runs_are_found_by_name_and_pattern(folder):
    (folder / "unfinished").mkdir()
    runs, ids, notes = find_runs(folder, [], "test")
    assert ([run.name for run in runs], ids, notes) == (["better", "worse"], list(CASES), [])
    assert choose_reference(runs).name == "better" and choose_reference(runs, "worse").name == "worse"
    for names, found in ((["worse"], ["worse"]), (["b*er"], ["better"]), (["worse", "*"], ["worse", "better"])):
        assert [run.name for run in find_runs(folder, names, "test")[0]] == found


def test_runs_that_do_not_fit_are_left_out_and_told(folder, tmp_path):
    evaluation_of(folder / "worse", tmp_path / "data", figures={"f1_score": 1}, intervals=None)
    (folder / "worse/evaluation.json").write_text(json.dumps(EVALUATION | {"split": "val"}))
    write_split(tmp_path / "else/test")
    for name in ("c", "d"):
        evaluation_of(write_run(folder / name, tmp_path / "data", BETTER), tmp_path / "data")
    evaluation_of(write_run(folder / "elsewhere", tmp_path / "else"), tmp_path / "else")
    evaluation_of(write_run(folder / "unlabelled", tmp_path / "data"), tmp_path / "data", figures=None)
    runs, _, notes = find_runs(folder, [], "test")
    assert [run.name for run in runs] == ["better", "c", "d"]
    assert "worse is left out: it was evaluated on val, not on test" in notes[1]
    assert "unlabelled is left out: test has no labels" in notes[0]
    assert notes[2].startswith("elsewhere is left out: it was evaluated on")
    with pytest.raises(InputError, match="evaluated on val"):
        find_runs(folder, ["worse"], "test")


def test_what_cannot_be_compared_is_named(folder, tmp_path):
    known = "no evaluated run third, x\\*; evaluated are: better, worse"
    for names, split, told in ((["third", "x*"], "test", known), ([], "val", "no run that was evaluated on val")):
        with pytest.raises(InputError, match=told):
            find_runs(folder, names, split)
    with pytest.raises(InputError, match="no run 'third'; choose among better, worse"):
        choose_reference(find_runs(folder, [], "test")[0], "third")
    manifest = tmp_path / "data/test/manifest.parquet"
    pd.read_parquet(manifest).assign(labelled=False).to_parquet(manifest)
    with pytest.raises(InputError, match="no run that was evaluated on test.*no labelled image that it predicted"):
        find_runs(folder, [], "test")


@pytest.mark.parametrize("name", ["evaluation.json", "metrics.jsonl", "predictions/test/scores.parquet"])
def test_a_damaged_run_is_left_out_with_its_reason(folder, name):
    (folder / "worse" / name).write_text("{\n" if name == "metrics.jsonl" else "{")
    runs, _, notes = find_runs(folder, [], "test")
    assert [run.name for run in runs] == ["better"] and notes[0].startswith("worse is left out: ") and name in notes[0]
    with pytest.raises(InputError, match=name):
        find_runs(folder, ["worse"], "test")


def test_predictions_that_are_newer_than_the_evaluation_are_seen(folder, tmp_path):
    nothing = write_run(folder / "nothing", tmp_path / "data", {id: (true, []) for id, (true, _) in CASES.items()})
    evaluation_of(nothing, tmp_path / "data")  # predicts no region: its F1 is 0, which is no reason to complain
    evaluation_of(folder / "worse", tmp_path / "data", figures={"f1_score": 0.99, "final_score": 0.5})
    found = {run.name: comparison.is_outdated(run.measured()) for run in find_runs(folder, [], "test")[0]}
    assert found == {"better": False, "nothing": False, "worse": True}


def test_paired_differences(folder):
    measured = {run.name: run.measured().at() for run in find_runs(folder, [], "test")[0]}
    resampled = resample(measured, 50, figures=("recall", "precision", "plcc"))
    table = paired_differences(resampled, "better").set_index("figure")
    # better: 3 of 3 regions hit, none invented; worse: 2 of 3 hit, 2 of 4 predicted ones invented
    assert table.loc["recall", ["reference", "value", "difference"]].tolist() == pytest.approx([1, 2 / 3, -1 / 3])
    assert table.loc["precision", ["reference", "value"]].tolist() == pytest.approx([1, 1 / 2])
    assert (table["low"] <= table["high"]).all()


def test_runs_that_held_out_other_images_are_compared_on_the_common_ones(tmp_path):
    write_split(tmp_path / "data/train")
    for name, ids in {"a": ("perfect", "missed"), "b": ("missed", "perfect", "false"), "c": ("sound",)}.items():
        cases = {id: BETTER[id] for id in ids}
        run = write_run(tmp_path / "runs" / name, tmp_path / "data", cases, split="held_out")
        evaluation_of(run, tmp_path / "data", split="held_out")
    runs, ids, notes = find_runs(tmp_path / "runs", [], "held_out")
    assert [run.name for run in runs] == ["a", "b"] and ids == ["perfect", "missed"]
    assert notes[0].startswith("c is left out: it shares no image with the others")
    assert "2 images that all of them predicted" in notes[1]
    measured = [run.measured() for run in runs]
    assert not any(map(comparison.is_outdated, measured)) and len(measured[1].labelled_ids) == 3
    resampled = resample({run.name: run.at(ids=ids) for run in measured}, 10, figures=("f1_score",))
    table = paired_differences(resampled, "a")
    assert table.loc[0, ["reference", "value"]].tolist() == pytest.approx([1, 1])
    assert find_runs(tmp_path / "runs", ["b"], "held_out")[2] == []


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


def test_equal_runs_are_seldom_told_apart():
    called = 0
    for seed in range(40):
        resampled = equal_runs(seed)
        best = max(resampled, key=lambda name: resampled[name].values["final_score"])
        table = paired_differences(resampled, best)
        called += ((table["low"] > 0) | (table["high"] < 0)).any()
    assert called <= 6  # 2 expected, and three standard errors; without regard to the choice of the best it is 8


def test_a_better_run_is_found_among_equal_ones_and_undefined_figures_stay_so():
    resampled = equal_runs(1)
    best = resampled["run3"]
    resampled["run3"] = Resampled({"final_score": best.values["final_score"] + 0.15}, best.draws + 0.15)
    table = paired_differences(resampled, "run3").set_index("run")
    assert (table["p"] < 0.05).all() and (table["high"] < 0).all()  # interval and p say the same
    assert table.loc["run0", "difference"] == pytest.approx((table["low"] + table["high"])["run0"] / 2)
    nothing = Resampled({"final_score": np.nan}, resampled["run2"].draws * np.nan)
    table = paired_differences(resampled | {"run2": nothing}, "run0").set_index("run")
    assert table.loc["run2", ["difference", "low", "high", "p"]].isna().all()
    assert table.loc["run1", ["difference", "low", "high", "p"]].notna().all()


@pytest.mark.parametrize(
    ("difference", "low", "high", "said"),
    [
        (0.031, 0.012, 0.05, "full - LoRA = +0.031 (+0.012 to +0.050)"),
        (-0.0001, -0.013, 0.012, "no significant difference: full - LoRA = 0.000 (-0.013 to +0.012)"),
        (-0.2, None, None, "full - LoRA = -0.200 (too few images for an interval)"),
    ],
)
def test_a_difference_in_words(difference, low, high, said):
    found = {"difference": difference, "low": low, "high": high}
    assert plots.difference_in_words("full", "LoRA", found) == said


def test_annotators_are_measured_against_each_other(tmp_path):
    """Two agree on a region, on another image they mark different corners, on a third there is one annotator only."""
    split = write_split(tmp_path / "test", {"agree": ([], []), "differ": ([], []), "alone": ([], [])})
    square, corner = [10.0, 10.0, 110.0, 110.0], [300.0, 300.0, 400.0, 400.0]
    drawn = [("agree", 0, square), ("agree", 1, square), ("differ", 0, square), ("differ", 1, corner)]
    rows = [{"id": id, "annotator": by, "shape": "rectangle", "points": points} for id, by, points in drawn]
    pd.DataFrame(rows).to_parquet(split / "regions.parquet")
    table = pd.read_parquet(split / "manifest.parquet").assign(n_annotators=[2.0, 2.0, 1.0])
    table.to_parquet(split / "manifest.parquet")
    labels = LabelStore(split)
    found = annotator_ceiling(labels, labels.ids, resamples=5)
    assert found["n_images"] == 2
    assert [found[name] for name in ("precision", "recall", "giou")] == pytest.approx([0.5] * 3)
    assert annotator_ceiling(labels, ["alone"]) == {}


def run(score: float, noise: float = 0.001) -> Resampled:
    """A run whose resampled scores lie evenly around its own, within `noise`."""
    return Resampled({"final_score": score}, pd.DataFrame({"final_score": score + np.linspace(-noise, noise, 101)}))


GRID = {
    "a": {"lr": 1e-3, "epoch": 2, "runs": "x"}, "b": {"lr": 1e-2, "epoch": 2, "runs": "x"},
    "c": {"lr": 1e-3, "epoch": 4, "runs": "x"}, "d": {"lr": 1e-2, "epoch": 4, "runs": "x"},
}  # fmt: skip
FINAL = {"a": 0.5, "b": 0.7, "c": 0.5, "d": 0.6}


def test_a_grid_averages_its_pairs():
    table = effects(factors(GRID), {name: run(score) for name, score in FINAL.items()}).set_index("parameter")
    # lr: (0.7 - 0.5 + 0.6 - 0.5) / 2; epoch: (0.5 - 0.5 + 0.6 - 0.7) / 2
    assert table["difference"].tolist() == pytest.approx([0.15, -0.05])
    assert table[["value", "instead_of", "pairs"]].to_numpy().tolist() == [["0.01", "0.001", 2], ["4", "2", 2]]
    # All runs were moved alike by every resample, so the differences are sure: p is 1 in 102.
    assert table["low"].tolist() == pytest.approx([0.15, -0.05])
    assert table["p"].tolist() == pytest.approx([1 / 102, 1 / 102])


def test_values_are_in_order_and_the_first_is_the_one_compared_with():
    configs = {"a": {"lr": 10.0}, "b": {"lr": 2.0}, "c": {"lr": 3.0}}
    [factor] = factors(configs)
    assert factor.levels == ("2.0", "3.0", "10.0")
    table = effects([factor], {"a": run(0.5), "b": run(0.25), "c": run(0.75)})
    assert table[["value", "difference"]].to_numpy().tolist() == [["3.0", 0.5], ["10.0", 0.25]]
    [texts] = factors({"a": {"loss": "mse"}, "b": {"loss": ""}})
    assert texts.levels == ("mse", "none")
    # What always changes together is one factor.
    configs = {"a": {"lr": 1, "epoch": 2, "seed": 0}, "b": {"lr": 3, "epoch": 4, "seed": 0}}
    [factor] = factors(configs)
    first, second = levels = ("lr 1, epoch 2", "lr 3, epoch 4")
    assert (factor.names, factor.title, factor.levels) == (("lr", "epoch"), "lr, epoch", levels)
    [row] = effects([factor], {"a": run(0.5), "b": run(0.75)}).itertuples()
    assert (row.parameter, row.value, row.instead_of, row.difference) == ("lr, epoch", second, first, 0.25)
    many = {name: dict.fromkeys("uvwxyz", name) for name in ("a", "b")}
    assert factors(many)[0].title == "u, v, w, 3 more"
    # Without pairs there is no effect.
    configs = {"a": {"lr": 1, "epoch": 5}, "b": {"lr": 2, "epoch": 5}, "c": {"lr": 3, "epoch": 6}}
    table = effects(factors(configs), {name: run(0.5) for name in configs})
    assert table[["parameter", "value", "instead_of"]].to_numpy().tolist() == [["lr", "2", "1"]]  # none for epoch
    assert effects([], {}).empty and factors({"a": {"lr": 1}}) == []
