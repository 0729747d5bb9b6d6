"""Metrics over a set: official figures, the sweep, calibration; the measures beside the challenge's and the field's."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from example_masks import GOLDEN, frame, golden, random_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from lib.errors import InputError
from lib.metrics.beyond import average_precision, full_frame_diagnostic, iou_curve
from lib.metrics.correlation import logistic_curve, pearson, score_figures
from lib.metrics.counts import challenge_figures, score_table, sweep, threshold_curve
from lib.metrics.field import MEASURES, field_figures, map_measures, measure_maps
from lib.metrics.heatmaps import Heatmaps
from lib.metrics.matching import PREDICTED_AREA_RATIO, count_regions, prepare_truth, to_grid
from lib.metrics.regions import compare
from lib.metrics.setting import Grid, Setting, Smoothed, best_setting
from lib.metrics.statistics import bootstrap_figures

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


@settings(max_examples=15)
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
    # Without regions.
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
    # An image without a true score leaves the others.
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
    # A score that runs against the labels is told, since PLCC does not.
    true = np.linspace(0, 1, 50)
    figures, notes = score_figures(1 - true, true)
    assert figures["plcc"] > 0.99 and figures["srcc"] == pytest.approx(-1)  # the organisers' figure, too
    assert notes[0].startswith("scores are inverted (SRCC -1.00); PLCC hides it")
    assert score_figures(true, true)[1] == []


def test_images_without_a_prediction_are_named():
    labels, predictions = Heatmaps({"a": frame(), "b": frame()}), Heatmaps({"a": frame(), "c": frame()})
    for ids, message in ((None, "not predicted .b."), ([], "no labelled image")):
        with pytest.raises(InputError, match=message):
            sweep(predictions, labels, [10], ids)


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


def test_average_precision_by_hand():
    # Of four marked pixels three are found by six at threshold 10, one by one at 20.
    counts = pd.DataFrame({"id": "a", "threshold": [10, 20], "predicted_pixels": [6, 1], "intersection": [3, 1],
                           "union": [7, 4]})  # fmt: skip
    assert average_precision(counts, n=2)[0] == pytest.approx(0.25 * 1 + 0.5 * 0.5)
    assert average_precision(counts.assign(intersection=0, union=[10, 5]), n=2)[0] == 0


def test_iou_curve_starts_at_the_challenge_with_its_interval_and_falls():
    predictions, labels = golden()
    curve = iou_curve(compare(predictions, labels, 90)[1], labels.ids, n=300, seed=4).set_index("iou_threshold")
    assert curve.at[0.1, "f1_score"] == pytest.approx(0.6728971962144117, abs=1e-9)
    assert curve["recall"].is_monotonic_decreasing and curve["precision"].is_monotonic_decreasing
    assert curve["recall"].iloc[-1] < curve["recall"].iloc[0]
    counts, scores = sweep(predictions, labels, [90]), pd.DataFrame({"predicted": 0.5, "true": 0.5}, index=labels.ids)
    interval = bootstrap_figures(counts, scores, n=300, seed=4, figures=("f1_score",))["f1_score"]
    assert (curve.at[0.1, "low"], curve.at[0.1, "high"]) == pytest.approx(interval)


def test_full_frame_diagnostic():
    # 100 x 280 pixels are 10.7 % of the frame, which a full-frame mask hits; 50 x 50 are not.
    labels = Heatmaps({"big": frame((0, 0, 100, 280)), "small": frame((9, 9, 50, 50)), "sound": frame()})
    found = full_frame_diagnostic(labels, labels.ids)
    assert found["recall"] == 0.5 and found["precision"] == pytest.approx(1 / 3)
    assert found["pixel_precision"] == pytest.approx((28000 + 2500) / (3 * 512**2))


FIELD = Path(__file__).parent / "golden" / "field_metrics"
EXPECTED = json.loads((FIELD / "expected.json").read_text())
PIXEL_THRESHOLDS = {"pixel_at_0.5": 0.5, "pixel_at_90_of_255": 90 / 255}


@pytest.fixture(scope="module")
def cases() -> dict[str, tuple]:
    arrays = np.load(FIELD / "cases.npz")
    return {name: (arrays[f"{name}.pred"], arrays[f"{name}.true"]) for name in EXPECTED["cases"]}


@pytest.mark.parametrize("name", EXPECTED["cases"])
def test_maps_measure_as_public_code_does(cases, name):
    found, expected = map_measures(*cases[name]), EXPECTED["cases"][name]
    marked = (cases[name][1] > 0).any()
    for measure, value in expected["richhf_float64"].items():
        want = np.float64(value) if marked or measure == "mse" else np.nan  # there 0 or NaN, by epsilon; None is NaN
        assert found[measure] == pytest.approx(want, rel=1e-6, abs=1e-6, nan_ok=True), measure
    exact = np.float64(expected["mann_whitney_auc"])
    assert found["auc_judd"] == pytest.approx(exact, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("at", PIXEL_THRESHOLDS)
def test_a_set_is_averaged_and_pooled_as_public_code_does(cases, at):
    """Means over the images that somebody marked; pixels summed over all images first."""
    expected = EXPECTED["aggregate"]
    chosen = [cases[name] for name in expected["images"]]
    maps = pd.DataFrame([map_measures(*case) for case in chosen])
    masks = [(p > np.float32(PIXEL_THRESHOLDS[at]), g > 0) for p, g in chosen]
    sums = [((p & g).sum(), (p | g).sum()) for p, g in masks]
    counts = pd.DataFrame(sums, columns=["intersection", "union"])
    found = field_figures(maps, counts, 50, pixels=[p.size for p, _ in masks])
    assert set(found) == {*MEASURES, "intervals"}
    assert found["mse"] == pytest.approx(expected["mse_all"], rel=1e-6)
    assert found["mse_empty"] == pytest.approx(expected["mse_gt_empty"], rel=1e-6)
    marked = maps.set_axis(expected["images"]).loc[expected["images_for_positive"]]
    means = field_figures(marked, counts.iloc[: len(marked)], 1)
    for measure in ("cc", "kld", "sim", "nss"):
        assert means[measure] == pytest.approx(expected[measure], rel=1e-6, abs=1e-6)
    pooled = expected[f"pooled_pixels_{at.removeprefix('pixel_')}"]
    for measure, name in (("pixel_iou", "mmseg_iou_bad"), ("miou", "mmseg_miou"), ("pixel_f1", "mmseg_f1_bad")):
        assert found[measure] == pytest.approx(pooled[name], rel=1e-6)
    assert all(low <= found[name] <= high for name, (low, high) in found["intervals"].items())


def test_a_store_is_measured_on_one_grid():
    """A label of another size than the heatmap, an unmarked image, and processes that share the work."""
    label = np.zeros((100, 50), np.uint8)
    label[20:60, 10:30] = 180
    labels = Heatmaps({"marked": label, "sound": np.zeros((30, 40), np.uint8)})
    predictions = Heatmaps({id: np.kron(labels.heatmap(id), np.ones((2, 2), np.uint8)) for id in labels.ids})
    maps = measure_maps(predictions, labels, side=128, workers=2)
    assert maps.at["marked", "cc"] > 0.99 and maps.at["marked", "auc_judd"] > 0.98
    assert maps.loc["sound", "mse"] == 0 and maps.loc["sound"].drop("mse").isna().all()
    found = field_figures(maps, sweep(predictions, labels, [90]), 20)
    assert found["pixel_f1"] > 0.99 and found["miou"] > 0.99 and found["mse_empty"] == 0
    assert found["kld"] == pytest.approx(maps.at["marked", "kld"])
