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


def differences(runs: dict, n: int, seed: int = 0, figures=FIGURES) -> dict:
    """{figure: row of `paired_differences`} of b minus a."""
    table = paired_differences(resample(runs, n, seed, figures), "a")
    return {row["figure"]: row for row in table.to_dict("records")}


# The truth of precision is the mean of clip(1.2 (1 - difficulty), 0, 1), difficulty ~ Beta(4, 4); that of PLCC the
# value of 200,000 images. Three standard errors of a share, and two points for the bootstrap's known optimism.
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


def test_equal_runs_do_not_differ_and_a_clear_improvement_is_seen():
    run, better = (simulate(np.random.default_rng(5), 100, skill) for skill in (0.3, 0.9))
    for figure in differences({"a": run, "b": run}, n=30).values():
        assert (figure["difference"], figure["p"]) == (0, 1)
        assert (figure["low"], figure["high"]) == pytest.approx((0, 0), abs=1e-9)
    assert differences({"a": run, "b": better}, n=200, figures=("f1_score",))["f1_score"]["low"] > 0.1


def test_runs_on_other_images_are_refused_by_name():
    counts, scores = simulate(np.random.default_rng(7))
    with pytest.raises(InputError, match="i0"):
        differences({"a": (counts, scores), "b": (counts.iloc[1:], scores)}, n=20)
    with pytest.raises(InputError, match="one threshold"):
        bootstrap_figures(pd.concat([counts, counts]), scores)
    with pytest.raises(InputError, match="f2_score.*f1_score"):
        bootstrap_figures(counts, scores, figures=("f2_score",))


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
