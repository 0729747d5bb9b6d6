"""The challenge metric over a set: official figures, the sweep, figures that are not defined, calibration."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest
from example_masks import GOLDEN, frame, golden, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.errors import InputError
from lib.metrics import Heatmaps, best_threshold, challenge_figures, evaluate, score_table, sweep, threshold_curve
from lib.metrics.calibration import Smoothed, best_setting, calibrate
from lib.metrics.correlation import logistic_curve, pearson, score_figures
from lib.metrics.matching import match_regions

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


def test_evaluate_is_the_curve_at_one_threshold():
    predictions, labels = golden()
    result = evaluate(predictions, labels, 90)
    assert result["threshold"] == 90 and result["n_images"] == 24 and result["notes"] == []
    assert result["final_score"] == pytest.approx(0.7401578040895389, abs=1e-9)


def test_processes_give_what_one_process_gives():
    predictions, labels = golden()
    thresholds, seen = [20, 90], []
    alone = sweep(predictions, labels, thresholds, workers=1)
    together = sweep(Smoothed(predictions, 0), labels, thresholds, workers=2, progress=lambda *done: seen.append(done))
    pd.testing.assert_frame_equal(alone, together)
    assert seen[-1] == (24, 24)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from([96, 192, 512, 600]))
def test_sweep_equals_matching_each_threshold_alone(seed, size):
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.random((size, size), dtype=np.float32), None, size / 24)
    scaled = (smooth - smooth.min()) / np.ptp(smooth) * 255
    heatmap = (scaled // rng.integers(1, 60) * rng.integers(1, 9)).clip(0, 255).astype(np.uint8)  # few or many levels
    label = random_mask(rng)
    counts = sweep(Heatmaps({"a": heatmap}), Heatmaps({"a": label}), range(0, 256, 9))
    for row in counts.itertuples():
        alone = match_regions(heatmap > row.threshold, label)
        assert (row.n_predicted, row.hit_predicted, row.n_true, row.hit_true, row.iou) == (
            alone.n_predicted, alone.hit_predicted, alone.n_true, alone.hit_true, alone.iou)  # fmt: skip


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


def test_nothing_predicted_is_zero_and_said():
    figures = curve_of({"n_predicted": 0, "hit_predicted": 0, "n_true": 5, "hit_true": 0})
    assert figures["precision"] == figures["f1_score"] == 0
    assert any("no region is predicted" in note for note in figures["notes"])


def test_no_true_region_leaves_recall_undefined_and_said():
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


def test_best_threshold_ignores_undefined_and_takes_the_lowest_of_equals():
    curve = pd.DataFrame({"threshold": [10, 20, 30, 40], "final_score": [np.nan, 0.3, 0.5, 0.5], "recall": np.nan})
    assert best_threshold(curve) == 30
    with pytest.raises(InputError, match="recall"):
        best_threshold(curve, by="recall")


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


@pytest.mark.parametrize("thresholds", [[], [256], [-1], [0.5]])
def test_thresholds_are_checked(thresholds):
    with pytest.raises(InputError, match="whole numbers from 0 to 255"):
        sweep(Heatmaps({"a": frame()}), Heatmaps({"a": frame()}), thresholds)


def test_heatmaps_with_channels_are_refused_by_id():
    with pytest.raises(InputError, match="heatmap of a .*512, 512, 3"):
        sweep(Heatmaps({"a": np.zeros((512, 512, 3), np.uint8)}), Heatmaps({"a": frame()}), [1])


def test_calibration_finds_what_was_hidden():
    # Signal at 200 on a ground of specks at 100 and small false blobs at 255.
    label = frame((50, 50, 100, 100), (300, 300, 120, 90))
    heatmap = label * np.uint8(200) + frame((10, 400, 20, 20), (450, 20, 20, 20), value=255)
    heatmap[::4, ::4] = np.maximum(heatmap[::4, ::4], 100)
    predictions, labels = Heatmaps({"a": heatmap}, {"a": 0.5}), Heatmaps({"a": label}, {"a": 0.5})
    curves = calibrate(predictions, labels, [50, 150, 220], [0.0006, 0.01], [0, 2])
    assert len(curves) == 12
    best = best_setting(curves, "f1_score")
    assert best["min_area_ratio"] == 0.01 and best["f1_score"] == pytest.approx(1, abs=1e-9)
    assert curves.query("threshold == 150 and min_area_ratio == 0.0006 and smoothing == 0")["precision"].item() == 0.5
    with pytest.raises(InputError, match="no effect"):
        calibrate(predictions, labels, [50], [0.0001])
