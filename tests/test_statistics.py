"""Intervals that cover what they say, and paired comparisons."""

import numpy as np
import pandas as pd
import pytest

from lib.errors import InputError
from lib.evaluate.comparison import paired_differences
from lib.metrics.correlation import score_figures
from lib.metrics.figures import FIGURES
from lib.metrics.statistics import bootstrap_figures, resample


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


def simulate_pair(rng, images, skills=(0.6, 0.6), noises=(0.3, 0.3)) -> tuple:
    """counts_a, scores_a, counts_b, scores_b of two runs on the same images, some of them hard for both."""
    difficulty = rng.beta(4, 4, images)
    a = simulate(rng, images, skills[0], difficulty, noises[0])
    return *a, *simulate(rng, images, skills[1], difficulty, noises[1], like=a)


def differences(counts_a, scores_a, counts_b, scores_b, n: int, seed: int = 0, figures=FIGURES) -> dict:
    """{figure: row of `paired_differences`} of b minus a."""
    table = paired_differences(resample({"a": (counts_a, scores_a), "b": (counts_b, scores_b)}, n, seed, figures), "a")
    return {row["figure"]: row for row in table.to_dict("records")}


def coverage(truth: float, figure: str, repeats: int, images: int = 60, noise: float = 0.3) -> float:
    """How often the 95 % interval of simulated sets holds the truth."""
    covered = 0
    for seed in range(repeats):
        counts, scores = simulate(np.random.default_rng(seed), images, noise=noise)
        low, high = bootstrap_figures(counts, scores, n=120, seed=seed, figures=(figure,))[figure]
        covered += low <= truth <= high
    return covered / repeats


# The truth of precision is the mean of clip(1.2 (1 - difficulty), 0, 1), difficulty ~ Beta(4, 4); that of PLCC the
# value of 200,000 images. Three standard errors of a share, and two points for the bootstrap's known optimism.
@pytest.mark.parametrize(
    ("figure", "truth", "of"),
    [
        ("precision", 0.5992, {"repeats": 200}),
        ("recall", 0.5992, {"repeats": 200}),
        ("giou", 0.5, {"repeats": 200}),
        ("plcc", 0.190, {"repeats": 100, "images": 100, "noise": 1.5}),
        ("plcc", 0.702, {"repeats": 100, "images": 100}),
    ],
)
def test_intervals_cover_what_they_say(figure, truth, of):
    assert 0.88 <= coverage(truth, figure, **of) <= (1 if figure == "plcc" else 0.99)


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["srcc", "f1_score"])
def test_intervals_of_composed_figures_cover_what_they_say(figure):
    counts, scores = simulate(np.random.default_rng(10_000), 80_000)
    truth = resample({"": (counts, scores)}, 1, figures=(figure,))[""].values[figure]
    assert 0.89 <= coverage(truth, figure, 200) <= 0.99


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


def test_undefined_figures_and_few_images_have_undefined_intervals():
    counts, scores = simulate(np.random.default_rng(3))
    intervals = bootstrap_figures(counts, scores.assign(predicted=0.5), n=20)
    assert np.isnan(intervals["srcc"]).all() and np.isfinite(intervals["final_score"]).all()
    for images, known in ((1, False), (4, False), (5, True)):
        counts, scores = simulate(np.random.default_rng(3), images)
        assert np.isfinite(bootstrap_figures(counts, scores, n=20, figures=("f1_score",))["f1_score"]).all() == known


def repeated(repeats: int, figures: dict, **how) -> tuple[dict, dict]:
    """Over simulated pairs of 100 images, with `figures` the true differences: how often the 95 % interval holds the
    true one, how often p < 0.05."""
    held, found = dict.fromkeys(figures, 0), dict.fromkeys(figures, 0)
    for seed in range(repeats):
        pair = simulate_pair(np.random.default_rng(seed), 100, **how)
        for name, one in differences(*pair, n=150, seed=seed, figures=tuple(figures)).items():
            held[name] += one["low"] <= figures[name] <= one["high"]
            found[name] += one["p"] < 0.05
    return tuple({name: count / repeats for name, count in counts.items()} for counts in (held, found))


def likely(share: float, repeats: int) -> tuple[float, float]:
    """Three standard errors to both sides of a share."""
    error = np.sqrt(share * (1 - share) / repeats)
    return share - 3 * error, share + 3 * error


@pytest.mark.parametrize(("skills", "truth"), [((0.6, 0.5), 0.5 - 0.5992), ((0.6, 0.6), 0.0)])
def test_paired_differences_of_f1_are_covered(skills, truth):
    # With a skill of 0.5 a region is hit with the chance 1 - difficulty, 0.5 in the mean; 0.5992 see above.
    held, found = repeated(120, {"f1_score": truth}, skills=skills)
    print(f"{held} of 95 % intervals hold the true difference {truth:.4f}; {found} have p < 0.05")
    least, most = likely(0.95, 120)
    assert least <= held["f1_score"] <= most
    least, most = likely(0.05, 120)
    assert (found["f1_score"] > 0.5) if truth else (least <= found["f1_score"] <= most)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"skills": (0.6, 0.5), "noises": (0.3, 0.2)}, {}], ids=["different", "alike"])
def test_paired_differences_of_scores_are_covered(how):
    figures = ("plcc", "final_score")
    # Among 100,000 images chance is a thirtieth of what it is among 100.
    many = differences(*simulate_pair(np.random.default_rng(1), 100_000, **how), n=1, figures=figures)
    truth = {name: many[name]["difference"] if how else 0.0 for name in figures}
    held, found = repeated(150, truth, **how)
    print(f"{held} of 95 % intervals hold the true differences {truth}; {found} have p < 0.05")
    for name in figures:
        least, most = likely(0.95, 150)
        assert least <= held[name] <= most
        least, most = likely(0.05, 150)
        assert how or least <= found[name] <= most


def test_equal_runs_do_not_differ_and_a_clear_improvement_is_seen():
    run, better = (simulate(np.random.default_rng(5), 100, skill) for skill in (0.3, 0.9))
    for figure in differences(*run, *run, n=30).values():
        assert (figure["difference"], figure["p"]) == (0, 1)
        assert (figure["low"], figure["high"]) == pytest.approx((0, 0), abs=1e-9)
    assert differences(*run, *better, n=200, figures=("f1_score",))["f1_score"]["low"] > 0.1


def test_runs_on_other_images_are_refused_by_name():
    counts, scores = simulate(np.random.default_rng(7))
    with pytest.raises(InputError, match="i0"):
        differences(counts, scores, counts.iloc[1:], scores, n=20)
    with pytest.raises(InputError, match="one threshold"):
        bootstrap_figures(pd.concat([counts, counts]), scores)
    with pytest.raises(InputError, match="f2_score.*f1_score"):
        bootstrap_figures(counts, scores, figures=("f2_score",))
