"""The measures beside the challenge's, and their intervals."""

import numpy as np
import pandas as pd
import pytest
from example_masks import frame, golden

from lib.metrics.beyond import average_precision, full_frame_diagnostic, iou_curve
from lib.metrics.counts import sweep
from lib.metrics.heatmaps import Heatmaps
from lib.metrics.regions import compare
from lib.metrics.statistics import bootstrap_figures


def test_pixel_average_precision_equals_ranking_the_pixels():
    rng = np.random.default_rng(8)
    heatmap = rng.integers(0, 256, (64, 64)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    label = rng.random((512, 512)) < heatmap / 400
    counts = sweep(Heatmaps({"a": heatmap}), Heatmaps({"a": label.astype(np.uint8)}), range(256))
    expected = 0
    for value in range(1, 256):  # no threshold admits the pixels of value 0
        new_hits = label[heatmap == value].sum()
        expected += new_hits / label.sum() * label[heatmap >= value].mean()
    # The envelope of the precision lifts the noisy first steps by a trifle.
    assert average_precision(counts, n=2).value == pytest.approx(expected, abs=2e-4)


def test_average_precision_by_hand():
    # Of four marked pixels three are found by six at threshold 10, one by one at 20.
    counts = pd.DataFrame({"id": "a", "threshold": [10, 20], "predicted_pixels": [6, 1], "intersection": [3, 1],
                           "union": [7, 4]})  # fmt: skip
    assert average_precision(counts, n=2).value == pytest.approx(0.25 * 1 + 0.5 * 0.5)
    assert average_precision(counts.assign(intersection=0, union=[10, 5]), n=2).value == 0


def test_iou_curve_starts_at_the_challenge_and_falls():
    predictions, labels = golden()
    curve = iou_curve(compare(predictions, labels, 90)[1], labels.ids).set_index("iou_threshold")
    assert curve.at[0.1, "f1_score"] == pytest.approx(0.6728971962144117, abs=1e-9)
    assert curve["recall"].is_monotonic_decreasing and curve["precision"].is_monotonic_decreasing
    assert curve["recall"].iloc[-1] < curve["recall"].iloc[0]


def test_full_frame_diagnostic():
    # 100 x 280 pixels are 10.7 % of the frame, which a full-frame mask hits; 50 x 50 are not.
    labels = Heatmaps({"big": frame((0, 0, 100, 280)), "small": frame((9, 9, 50, 50)), "sound": frame()})
    found = full_frame_diagnostic(labels)
    assert found["images_hit"] == 0.5 and found["recall"] == 0.5 and found["precision"] == pytest.approx(1 / 3)
    assert found["pixel_precision"] == pytest.approx((28000 + 2500) / (3 * 512**2))


def test_intervals_are_those_of_the_official_figures():
    predictions, labels = golden()
    curve = iou_curve(compare(predictions, labels, 90)[1], labels.ids, n=300, seed=4).set_index("iou_threshold")
    counts, scores = sweep(predictions, labels, [90]), pd.DataFrame({"predicted": 0.5, "true": 0.5}, index=labels.ids)
    low, high = bootstrap_figures(counts, scores, n=300, seed=4, figures=("f1_score",))["f1_score"]
    assert (curve.at[0.1, "low"], curve.at[0.1, "high"]) == pytest.approx((low, high))
