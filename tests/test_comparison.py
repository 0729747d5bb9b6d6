"""Comparison of runs: which are taken, what differs, who is better; intervals that cover."""

import json

import numpy as np
import pandas as pd
import pytest
from example_runs import CASES, EVALUATION, write_run, write_split

from lib import plots
from lib.errors import InputError
from lib.evaluate.ceiling import annotator_ceiling
from lib.evaluate.comparison import choose_reference, find_runs, paired_differences
from lib.metrics.correlation import score_figures
from lib.metrics.counts import challenge_figures, score_table, sweep
from lib.metrics.figures import FIGURES
from lib.metrics.statistics import Resampled, bootstrap_figures, resample
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
    runs, notes = find_runs(folder, [], "test")
    assert ([run.name for run in runs], notes) == (["better", "worse"], [])
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
    runs, notes = find_runs(folder, [], "test")
    assert [run.name for run in runs] == ["better", "c", "d"]
    for name, note in zip(("unlabelled", "worse"), notes, strict=False):
        assert note == f"{name} is left out: it was not evaluated on test, or test has no labels."
    assert notes[2].startswith("elsewhere is left out: it was evaluated on other images than most runs")
    with pytest.raises(InputError, match="not evaluated on test"):
        find_runs(folder, ["worse"], "test")


def test_what_cannot_be_compared_is_named(folder):
    known = "no evaluated run third, x\\*; evaluated are: better, worse"
    for names, split, told in ((["third", "x*"], "test", known), ([], "val", "no run that was evaluated on val")):
        with pytest.raises(InputError, match=told):
            find_runs(folder, names, split)
    with pytest.raises(InputError, match="no run 'third'; choose among better, worse"):
        choose_reference(find_runs(folder, [], "test")[0], "third")


@pytest.mark.parametrize("name", ["evaluation.json", "metrics.jsonl", "predictions/test/scores.parquet"])
def test_a_damaged_run_is_left_out_with_its_reason(folder, name):
    (folder / "worse" / name).write_text("{\n" if name == "metrics.jsonl" else "{")
    runs, notes = find_runs(folder, [], "test")
    assert [run.name for run in runs] == ["better"] and notes[0].startswith("worse is left out: ") and name in notes[0]
    with pytest.raises(InputError, match=name):
        find_runs(folder, ["worse"], "test")


def test_paired_differences(folder):
    measured = {run.name: run.measured().at() for run in find_runs(folder, [], "test")[0]}
    resampled = resample(measured, 50, figures=("recall", "precision", "plcc"))
    table = paired_differences(resampled, "better").set_index("figure")
    # better: 3 of 3 regions hit, none invented; worse: 2 of 3 hit, 2 of 4 predicted ones invented
    assert table.loc["recall", ["reference", "value", "difference"]].tolist() == pytest.approx([1, 2 / 3, -1 / 3])
    assert table.loc["precision", ["reference", "value"]].tolist() == pytest.approx([1, 1 / 2])
    assert table[["low", "high", "p"]].isna().all(axis=None)  # of four images


def test_runs_that_held_out_other_images_are_left_out(tmp_path):
    write_split(tmp_path / "data/train")
    for name, ids in {"a": ("perfect", "missed"), "b": ("missed", "false"), "c": ("perfect", "missed")}.items():
        cases = {id: BETTER[id] for id in ids}
        run = write_run(tmp_path / "runs" / name, tmp_path / "data", cases, split="held_out")
        evaluation_of(run, tmp_path / "data", split="held_out")
    runs, notes = find_runs(tmp_path / "runs", [], "held_out")
    assert [run.name for run in runs] == ["a", "c"]
    assert len(notes) == 1 and notes[0].startswith("b is left out: it was evaluated on other images than most runs")


def equal_runs(seed: int) -> dict[str, Resampled]:
    """The F1 of four runs of one skill on the same images."""
    rng = np.random.default_rng(seed)
    difficulty = rng.beta(4, 4, 100)
    first = simulate(rng, 100, 0.6, difficulty)
    runs = [first, *(simulate(rng, 100, 0.6, difficulty, like=first) for _ in range(3))]
    return resample({f"run{number}": run for number, run in enumerate(runs)}, 199, seed, ("f1_score",))


def test_equal_runs_are_seldom_told_apart():
    called = 0
    for seed in range(40):
        resampled = equal_runs(seed)
        best = max(resampled, key=lambda name: resampled[name].values["f1_score"])
        table = paired_differences(resampled, best)
        called += ((table["low"] > 0) | (table["high"] < 0)).any()
    assert called <= 6  # 2 expected, and three standard errors; without regard to the choice of the best it is 8


def test_a_better_run_is_found_among_equal_ones_and_undefined_figures_stay_so():
    resampled = equal_runs(1)
    best = resampled["run3"]
    resampled["run3"] = Resampled({"f1_score": best.values["f1_score"] + 0.15}, best.draws + 0.15)
    table = paired_differences(resampled, "run3").set_index("run")
    assert (table["p"] < 0.05).all() and (table["high"] < 0).all()  # interval and p say the same
    assert table.loc["run0", "difference"] == pytest.approx((table["low"] + table["high"])["run0"] / 2)
    nothing = Resampled({"f1_score": np.nan}, resampled["run2"].draws * np.nan)
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


def simulate(rng, images=60, skill=0.6, difficulty=None, noise=0.3, like=None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Counts and scores of a run whose regions are hit with a chance that differs from image to image.

    `noise` is that of the predicted scores; `like` another run, whose true regions and true scores this one has, too.
    """
    difficulty = rng.beta(4, 4, images) if difficulty is None else difficulty
    chance = np.clip(skill * 2 * (1 - difficulty), 0, 1)
    n_predicted, n_true = rng.poisson(4, images), like[0]["n_true"] if like else rng.poisson(3, images)
    counts = pd.DataFrame({
        "id": [f"i{number}" for number in range(images)],
        "n_predicted": n_predicted, "hit_predicted": rng.binomial(n_predicted, chance),
        "n_true": n_true, "hit_true": rng.binomial(n_true, chance),
        "iou": rng.beta(2, 2, images),
    })  # fmt: skip
    true = like[1]["true"].to_numpy() if like else rng.random(images)
    scores = pd.DataFrame({"predicted": true + rng.normal(0, noise, images), "true": true}, index=counts["id"])
    return counts, scores


def differences(runs: dict, n: int, seed: int = 0, figures=FIGURES) -> dict:
    """{figure: row of `paired_differences`} of b minus a."""
    table = paired_differences(resample(runs, n, seed, figures), "a")
    return {row["figure"]: row for row in table.to_dict("records")}


# The truth of precision is the mean of clip(1.2 (1 - difficulty), 0, 1), difficulty ~ Beta(4, 4); that of PLCC the
# value of 200,000 images. Three standard errors of a share, and two points for the bootstrap's known optimism.
@pytest.mark.parametrize(
    ("figure", "truth", "repeats", "of"),
    [
        ("precision", 0.5992, 200, {}),
        ("recall", 0.5992, 200, {}),
        ("giou", 0.5, 200, {}),
        ("plcc", 0.190, 100, {"images": 100, "noise": 1.5}),
        ("plcc", 0.702, 100, {"images": 100}),
    ],
)
def test_intervals_cover_what_they_say(figure, truth, repeats, of):
    covered = 0
    for seed in range(repeats):
        run = simulate(np.random.default_rng(seed), **of)
        low, high = bootstrap_figures(*run, n=120, seed=seed, figures=(figure,))[figure]
        covered += low <= truth <= high
    assert 0.88 <= covered / repeats <= (1 if figure == "plcc" else 0.99)


def test_every_figure_has_an_interval_around_it_and_seeds_repeat():
    counts, scores = simulate(np.random.default_rng(3))
    first, again = (bootstrap_figures(counts, scores, n=60, seed=5) for _ in range(2))
    assert first == again and set(first) == set(FIGURES)
    assert all(low < high for low, high in first.values())
    assert bootstrap_figures(counts, scores.iloc[::-1], n=60, seed=5) == first  # scores are matched by id
    missing = scores.assign(true=scores["true"].where(scores.index != "i3"))
    found, expected = resample({"": (counts, missing)}, n=60, seed=5)[""], score_figures(*missing.to_numpy().T)[0]
    for name in ("plcc", "srcc", "rmse_mos"):
        low, high = found.intervals[name]
        assert low < found.values[name] < high and found.values[name] == pytest.approx(expected[name])
    # Undefined figures and few images have undefined intervals.
    intervals = bootstrap_figures(counts, scores.assign(predicted=0.5), n=20)
    assert np.isnan(intervals["srcc"]).all() and np.isfinite(intervals["final_score"]).all()
    for images, known in ((1, False), (4, False), (5, True)):
        counts, scores = simulate(np.random.default_rng(3), images)
        assert np.isfinite(bootstrap_figures(counts, scores, n=20, figures=("f1_score",))["f1_score"]).all() == known


def test_runs_on_other_images_are_refused_by_name():
    counts, scores = simulate(np.random.default_rng(7))
    with pytest.raises(InputError, match="i0"):
        differences({"a": (counts, scores), "b": (counts.iloc[1:], scores)}, n=20)
    with pytest.raises(InputError, match="one threshold"):
        bootstrap_figures(pd.concat([counts, counts]), scores)


def pair_of_runs(rng, images, skills=(0.6, 0.6), noises=(0.3, 0.3)) -> dict:
    """Two runs on the same images, some of them hard for both."""
    difficulty = rng.beta(4, 4, images)
    a = simulate(rng, images, skills[0], difficulty, noises[0])
    return {"a": a, "b": simulate(rng, images, skills[1], difficulty, noises[1], like=a)}


# With a skill of 0.5 a region is hit with the chance 1 - difficulty, 0.5 in the mean; 0.5992 see above. PLCC and final
# score of the different runs: their difference among a million images.
@pytest.mark.parametrize(
    ("truths", "how", "repeats"),
    [
        ({"f1_score": 0.5 - 0.5992}, {"skills": (0.6, 0.5)}, 120),
        ({"f1_score": 0.0}, {}, 120),
        pytest.param({"plcc": 0.0, "final_score": 0.0}, {}, 150, marks=pytest.mark.slow),
        pytest.param(
            {"plcc": 0.131, "final_score": -0.0302}, {"skills": (0.6, 0.5), "noises": (0.3, 0.2)}, 150,
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_paired_differences_are_covered(truths, how, repeats):
    """Of 100 images: how often the 95 % interval holds the true difference, how often p < 0.05."""
    held, found = dict.fromkeys(truths, 0), dict.fromkeys(truths, 0)
    for seed in range(repeats):
        runs = pair_of_runs(np.random.default_rng(seed), 100, **how)
        for name, one in differences(runs, n=150, seed=seed, figures=tuple(truths)).items():
            held[name] += one["low"] <= truths[name] <= one["high"]
            found[name] += one["p"] < 0.05
    error = 3 * np.sqrt(0.05 * 0.95 / repeats)
    for name, truth in truths.items():
        assert abs(held[name] / repeats - 0.95) <= error
        assert truth or abs(found[name] / repeats - 0.05) <= error
        assert name != "f1_score" or not truth or found[name] / repeats > 0.5
