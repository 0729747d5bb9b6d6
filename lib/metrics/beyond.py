"""What the challenge's F1 hides: precision over all thresholds, how well regions are drawn, what comes for free.

Intervals are 95 %, by bootstrap over images, as in `lib.metrics.statistics`.
"""

import numpy as np
import pandas as pd

from lib.metrics.counts import sweep
from lib.metrics.figures import region_figures
from lib.metrics.heatmaps import Heatmaps
from lib.metrics.matching import CHALLENGE_SIZE, COUNTS
from lib.metrics.statistics import SUMMED, interval_of, resampled_sums

AP_THRESHOLDS = tuple(range(0, 255, 5))  # fixed: the average precision of other thresholds is another figure
PIXELS = ["predicted_pixels", "intersection", "union"]
RESAMPLES = 500


def average_precision(counts: pd.DataFrame, n: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """Area under precision over recall of pixels, summed over all images: (value, low, high).

    `counts` is a `sweep`: all images, all its thresholds. No trick with large masks improves it. Each step of recall
    counts with the best precision at that recall or above; no recall beyond the sweep is assumed.
    """
    ordered = counts.sort_values(["id", "threshold"])
    values = ordered[PIXELS].to_numpy(float).reshape(-1, counts["threshold"].nunique(), len(PIXELS))
    draws = np.array([_area(*sums.T) for sums in resampled_sums(values, n, seed)])
    return _area(*values.sum(axis=0).T), *interval_of(draws)


def _area(predicted: np.ndarray, intersection: np.ndarray, union: np.ndarray) -> float:
    """Of pixels summed over images, [thresholds] each."""
    true = union[0] + intersection[0] - predicted[0]
    if not true:
        return np.nan
    recall, precision = intersection / true, intersection / np.maximum(predicted, 1)
    order = np.argsort(recall, kind="stable")
    best_from_here = np.maximum.accumulate(precision[order][::-1])[::-1]
    return float(np.diff(recall[order], prepend=0) @ best_from_here)


def iou_curve(regions: pd.DataFrame, ids, n: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """Precision, recall and F1 as the IoU that a hit must exceed rises; the challenge asks for 0.1 only.

    `regions` is the second table of `lib.metrics.regions.compare`, `ids` all images it was made of (some have no
    region). `low` and `high` are the interval of F1. A curve that falls at once says that regions are found but badly
    drawn.
    """
    levels = np.arange(0, 100, 5) / 100
    values = np.zeros((len(ids), len(levels), len(SUMMED)))
    image = pd.Index(ids).get_indexer(regions["id"])
    for side in ("predicted", "true"):
        rows = (regions["side"] == side).to_numpy()
        hits = regions["iou"].to_numpy()[rows, None] > levels
        np.add.at(values[..., SUMMED.index(f"n_{side}")], image[rows], 1)
        np.add.at(values[..., SUMMED.index(f"hit_{side}")], image[rows], hits)
    counts = dict(zip(SUMMED, np.moveaxis(values.sum(axis=0), -1, 0), strict=True))
    drawn = dict(zip(SUMMED, np.moveaxis(resampled_sums(values, n, seed), -1, 0), strict=True))
    low, high = np.transpose([interval_of(draws) for draws in region_figures(drawn)["f1_score"].T])
    return pd.DataFrame({"iou_threshold": levels, **region_figures(counts), **counts, "low": low, "high": high})


def full_frame_diagnostic(labels, ids) -> dict[str, float]:
    """What the challenge gives a mask that covers every image whole: the floor that F1 must be read against.

    Returns precision, recall and f1_score of that mask, and `pixel_precision`, the share of pixels it is right about.
    """
    full = Heatmaps(dict.fromkeys(ids, np.full((CHALLENGE_SIZE, CHALLENGE_SIZE), 255, np.uint8)))
    sums = sweep(full, labels, [0], ids)[COUNTS].sum()
    found = {name: float(figure) for name, figure in region_figures(sums).items()}
    return found | {"pixel_precision": sums["intersection"] / sums["predicted_pixels"]}
