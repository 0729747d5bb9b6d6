"""The challenge metric over a set: official figures, the sweep, figures that are not defined, calibration."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from example_masks import GOLDEN, frame, golden, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from lib.errors import InputError
from lib.metrics.correlation import logistic_curve, pearson, score_figures
from lib.metrics.counts import challenge_figures, score_table, sweep, threshold_curve
from lib.metrics.heatmaps import Heatmaps
from lib.metrics.matching import PREDICTED_AREA_RATIO, count_regions, prepare_truth, to_grid
from lib.metrics.setting import Grid, Setting, Smoothed, best_setting

SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("name", "min_area_ratio"), [("official", 0.0006), ("reference_online", 0.0001)])
def test_golden_figures(name, min_area_ratio):
    expected = {key: value for key, value in json.loads((GOLDEN / "expected.json").read_text()).items() if name in key}
    predictions, labels = golden()
    thresholds = [int(key.split("@")[1]) for key in expected]
    counts = sweep(predictions, labels, thresholds, min_area_ratio=min_area_ratio)
    curve = threshold_curve(counts, score_table(predictions, labels)).set_index("threshold")
    assert len(expected) == 4
    for threshold, figures in zip(thresholds, expected.values(), strict=True):
        for figure, value in figures.items():
            assert curve.at[threshold, figure] == pytest.approx(value, abs=1e-9), (threshold, figure)


def test_processes_give_what_one_process_gives():
    predictions, labels = golden()
    thresholds, seen = [20, 90], []
    alone = sweep(predictions, labels, thresholds, workers=1)
    together = sweep(Smoothed(predictions, 0), labels, thresholds, workers=2, progress=lambda *done: seen.append(done))
    pd.testing.assert_frame_equal(alone, together)
    assert seen[-1] == (24, 24)


@settings(max_examples=25)
@given(SEEDS, st.sampled_from([96, 192, 512, 600]))
def test_sweep_equals_matching_each_threshold_alone(seed, size):
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.random((size, size), dtype=np.float32), None, size / 24)
    scaled = (smooth - smooth.min()) / np.ptp(smooth) * 255
    heatmap = (scaled // rng.integers(1, 60) * rng.integers(1, 9)).clip(0, 255).astype(np.uint8)  # few or many levels
    label = random_mask(rng)
    counts = sweep(Heatmaps({"a": heatmap}), Heatmaps({"a": label}), range(0, 256, 9))
    for row in counts.itertuples():
        mask = to_grid(heatmap > row.threshold)
        [alone] = count_regions(mask, prepare_truth(label), (PREDICTED_AREA_RATIO,))
        assert (tuple(alone)) == tuple(getattr(row, name) for name in alone._fields)


def curve_of(counts: dict, scores=((0.1, 0.2), (0.5, 0.4), (0.9, 0.8))) -> dict:
    columns = {"predicted_pixels": 0, "intersection": 0, "union": 1, "iou": 0.0, **counts}
    return challenge_figures(pd.DataFrame([columns] * 3), pd.DataFrame(scores, columns=["predicted", "true"]))


def test_figures_by_hand():
    figures = curve_of({"n_predicted": 4, "hit_predicted": 2, "n_true": 5, "hit_true": 2})
    assert figures["precision"] == 0.5 and figures["recall"] == pytest.approx(0.4)
    assert figures["f1_score"] == pytest.approx(4 / 9, abs=1e-9)
    assert figures["srcc"] == figures["krcc"] == pytest.approx(1)
    assert figures["rmse_mos"] == pytest.approx(0.4)  # every score is off by 0.1, and a MOS has four times the range
    assert figures["final_score"] == pytest.approx(0.7 * 4 / 9 + 0.15 * (figures["plcc"] + 1), abs=1e-9)
    assert any("four images" in note for note in figures["notes"])  # three images cannot bear four parameters


def test_figures_without_regions_are_said():
    figures = curve_of({"n_predicted": 0, "hit_predicted": 0, "n_true": 5, "hit_true": 0})
    assert figures["precision"] == figures["f1_score"] == 0
    assert any("no region is predicted" in note for note in figures["notes"])
    figures = curve_of({"n_predicted": 2, "hit_predicted": 0, "n_true": 0, "hit_true": 0})
    assert np.isnan(figures["recall"]) and np.isnan(figures["f1_score"]) and np.isfinite(figures["final_score"])
    assert any("no label has a region" in note for note in figures["notes"])


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (((0.5, 0.2), (0.5, 0.4), (0.5, 0.8)), "every predicted score is 0.5"),
        (((0.1, 1.0), (0.5, 1.0), (0.9, 1.0)), "every true score is 1"),
        (((0.1, 0.2), (np.nan, 0.4), (0.9, 0.8)), "1 predicted scores are not finite"),
        (((0.1, 0.2), (0.3, np.nan), (0.9, np.nan)), "only 1 images have a true score"),
    ],
)
def test_undefined_correlations_are_nan_count_as_zero_and_are_said(scores, said):
    figures = curve_of({"n_predicted": 4, "hit_predicted": 4, "n_true": 5, "hit_true": 5}, scores)
    assert np.isnan(figures["plcc"]) and np.isnan(figures["srcc"])
    assert figures["final_score"] == pytest.approx(0.7, abs=1e-9)
    assert any(said in note for note in figures["notes"])


def test_an_image_without_a_true_score_leaves_the_others():
    figures, notes = score_figures([0.1, 0.9, 0.5, 0.4], [0.0, 0.8, np.nan, 0.5])
    assert figures["srcc"] == pytest.approx(1) and "1 images have no true score" in notes[0]


LEVELS = st.integers(0, 4).map(lambda level: level / 4)


@given(st.lists(st.tuples(LEVELS, LEVELS), min_size=2, max_size=12).filter(lambda rows: np.ptp(rows, axis=0).all()))
def test_rank_correlations_share_ties(rows):
    predicted, true = np.transpose(rows)
    figures, _ = score_figures(predicted, true)
    assert figures["srcc"] == pytest.approx(spearmanr(predicted, true).statistic)
    same = np.sign(np.subtract.outer(predicted, predicted)) * np.sign(np.subtract.outer(true, true))
    untied = [np.count_nonzero(np.subtract.outer(side, side)) for side in (predicted, true)]
    assert figures["krcc"] == pytest.approx(same.sum() / np.sqrt(np.prod(untied)))


def test_logistic_fit_straightens_a_curve_and_falls_back_aloud():
    predicted = np.linspace(0, 1, 50)
    true = 1 / (1 + np.exp(-(predicted - 0.5) / 0.05))
    plain = np.corrcoef(predicted, true)[0, 1]
    curve, note = logistic_curve(predicted, true)
    assert plain < 0.95 < 0.9999 < pearson(curve, true) and note == ""
    bounded, note = logistic_curve(predicted, true, max_evaluations=1)
    assert pearson(bounded, true) == pytest.approx(plain) and "did not converge" in note


def test_a_score_that_runs_against_the_labels_is_told_since_plcc_does_not():
    true = np.linspace(0, 1, 50)
    figures, notes = score_figures(1 - true, true)
    assert figures["plcc"] > 0.99 and figures["srcc"] == pytest.approx(-1)  # the organisers' figure, too
    assert notes[0].startswith("scores are inverted (SRCC -1.00); PLCC hides it")
    assert score_figures(true, true)[1] == []


@pytest.mark.parametrize(
    ("predicted", "ids", "message"),
    [
        (["a"], None, "not predicted.*b"),
        (["a", "b", "c"], None, "not in the labels.*c"),
        (["a"], ["z"], "without a label.*z"),
    ],
)
def test_ids_must_fit(predicted, ids, message):
    labels = Heatmaps({"a": frame(), "b": frame()})
    with pytest.raises(InputError, match=message):
        sweep(Heatmaps({id: frame() for id in predicted}), labels, [10], ids)


def test_thresholds_are_checked():
    one = Heatmaps({"a": frame()})
    for thresholds in ([], [256], [-1], [0.5]):
        with pytest.raises(InputError, match="whole numbers from 0 to 255"):
            sweep(one, one, thresholds)


def test_calibration_finds_what_was_hidden():
    # Signal at 200 on a ground of specks at 100 and small false blobs at 255.
    label = frame((50, 50, 100, 100), (300, 300, 120, 90))
    heatmap = label * np.uint8(200) + frame((10, 400, 20, 20), (450, 20, 20, 20), value=255)
    heatmap[::4, ::4] = np.maximum(heatmap[::4, ::4], 100)
    predictions, labels = Heatmaps({"a": heatmap}, {"a": 0.5}), Heatmaps({"a": label}, {"a": 0.5})
    curves = Grid((50, 150, 220), (0.0006, 0.01), (0, 2)).curves(predictions, labels)
    assert len(curves) == 12
    assert best_setting(curves) == Setting(50, 0.01, 0) and curves["f1_score"].max() == pytest.approx(1, abs=1e-9)
    equal = best_setting(curves.assign(final_score=0.5, threshold=[3, 2, 1] * 4).iloc[::-1])
    assert equal == Setting(1, 0.0006, 0)  # the lowest of equals
    assert curves.query("threshold == 150 and min_area_ratio == 0.0006 and smoothing == 0")["precision"].item() == 0.5
    with pytest.raises(InputError, match="no effect"):
        Grid((50,), (0.0001,)).curves(predictions, labels)
