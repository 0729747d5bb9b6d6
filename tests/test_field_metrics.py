"""The field's measures against values of the public implementations (golden/field_metrics/expected.json names them)."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.metrics.counts import sweep
from lib.metrics.field import MEASURES, field_figures, map_measures, measure_maps
from lib.metrics.heatmaps import Heatmaps

GOLDEN = Path(__file__).parent / "golden" / "field_metrics"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
THRESHOLDS = {"pixel_at_0.5": 0.5, "pixel_at_90_of_255": 90 / 255}


def number(value) -> float:
    return float(value) if value is not None else np.nan


@pytest.fixture(scope="module")
def cases() -> dict[str, tuple]:
    arrays = np.load(GOLDEN / "cases.npz")
    return {name: (arrays[f"{name}.pred"], arrays[f"{name}.true"]) for name in EXPECTED["cases"]}


@pytest.mark.parametrize("name", EXPECTED["cases"])
def test_maps_measure_as_public_code_does(cases, name):
    found, expected = map_measures(*cases[name]), EXPECTED["cases"][name]
    marked = (cases[name][1] > 0).any()
    for measure, value in expected["richhf_float64"].items():
        want = number(value) if marked or measure == "mse" else np.nan  # there 0 or NaN, by epsilon
        assert found[measure] == pytest.approx(want, rel=1e-6, abs=1e-6, nan_ok=True), measure
    exact = number(expected["mann_whitney_auc"])
    assert found["auc_judd"] == pytest.approx(exact, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("at", THRESHOLDS)
def test_a_set_is_averaged_and_pooled_as_public_code_does(cases, at):
    """Means over the images that somebody marked; pixels summed over all images first."""
    expected = EXPECTED["aggregate"]
    chosen = [cases[name] for name in expected["images"]]
    maps = pd.DataFrame([map_measures(*case) for case in chosen])
    masks = [(p > np.float32(THRESHOLDS[at]), g > 0) for p, g in chosen]
    counts = pd.DataFrame({
        "intersection": [(p & g).sum() for p, g in masks],
        "union": [(p | g).sum() for p, g in masks],
    })  # fmt: skip
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
