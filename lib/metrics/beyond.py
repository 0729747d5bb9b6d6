"""What the challenge's F1 hides: precision over all thresholds, how well regions are drawn, what comes for free.

Each measure has a 95 % bootstrap interval over images, as in `lib.metrics.statistics`.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.metrics.counts import paired_ids, sweep
from lib.metrics.figures import region_figures
from lib.metrics.mapping import Heatmaps
from lib.metrics.matching import CHALLENGE_SIZE
from lib.metrics.statistics import SUMMED, interval_of, resampled_sums

AP_THRESHOLDS = tuple(range(0, 255, 5))  # fixed: the average precision of other thresholds is another figure
PIXELS = ["predicted_pixels", "intersection", "union"]
RESAMPLES = 500


class Estimate(NamedTuple):
    """A value with the interval `low`, `high`; as text like 0.512 (0.47 to 0.55)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.2f} to {self.high:.2f})"


def average_precision(counts: pd.DataFrame, level: str = "pixel", n: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Area under precision over recall, over the thresholds of a sweep.

    `counts` is the `sweep` (all images, all thresholds). `level` "pixel" pools the pixels of all images, which no
    trick with large masks improves; "region" uses the challenge's region counts. Each step of recall counts with the
    best precision at that recall or above; no recall beyond the sweep is assumed.
    """
    names = {"pixel": PIXELS, "region": SUMMED}.get(level)
    if names is None:
        raise InputError(f"The level {level!r} of average_precision is unknown; use pixel or region")
    area = _area_of_pixels if level == "pixel" else _area_of_regions
    ordered = counts.sort_values(["id", "threshold"])
    values = ordered[names].to_numpy(float).reshape(-1, counts["threshold"].nunique(), len(names))
    draws = np.array([area(sums) for sums in resampled_sums(values, n, seed)])
    return Estimate(area(values.sum(axis=0)), *interval_of(draws))


def _area_of_pixels(sums: np.ndarray) -> float:
    """Of PIXELS summed over images, [thresholds, 3]."""
    predicted, both, either = sums.T
    true = either + both - predicted
    recall = np.divide(both, true, out=np.full_like(both, np.nan), where=true > 0)
    return _area(recall, both / np.maximum(predicted, 1))


def _area_of_regions(sums: np.ndarray) -> float:
    """Of SUMMED over images, [thresholds, 4]."""
    figures = region_figures(dict(zip(SUMMED, sums.T, strict=True)))
    return _area(figures["recall"], figures["precision"])


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    if np.isnan(recall).all():
        return np.nan
    order = np.argsort(recall, kind="stable")
    best_from_here = np.maximum.accumulate(precision[order][::-1])[::-1]
    return float(np.diff(recall[order], prepend=0) @ best_from_here)


def iou_curve(regions: pd.DataFrame, ids, iou_thresholds=None, n: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """Precision, recall and F1 as the IoU that a hit must exceed rises; the challenge asks for 0.1 only.

    `regions` is the second table of `lib.metrics.regions.compare`, `ids` all images it was made of (some have no
    region). `low` and `high` are the interval of F1. A curve that falls at once says that regions are found but badly
    drawn.
    """
    levels = np.arange(0, 100, 5) / 100 if iou_thresholds is None else np.asarray(iou_thresholds, float)
    values = np.zeros((len(ids), len(levels), len(SUMMED)))
    image = pd.Index(ids).get_indexer(regions["id"])
    for side in ("predicted", "true"):
        rows = (regions["side"] == side).to_numpy()
        hits = regions["iou"].to_numpy()[rows, None] > levels
        np.add.at(values[..., SUMMED.index(f"n_{side}")], image[rows], 1)
        np.add.at(values[..., SUMMED.index(f"hit_{side}")], image[rows], hits)
    counts = dict(zip(SUMMED, np.moveaxis(values.sum(axis=0), -1, 0), strict=True))
    drawn = dict(zip(SUMMED, np.moveaxis(resampled_sums(values, n, seed), -1, 0), strict=True))
    intervals = [interval_of(draws) for draws in region_figures(drawn)["f1_score"].T]
    curve = pd.DataFrame({"iou_threshold": levels, **region_figures(counts), **counts})
    return curve.assign(low=[low for low, _ in intervals], high=[high for _, high in intervals])


def full_frame_diagnostic(labels, ids=None, workers=None, n: int = RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
    """What the challenge gives a mask that covers every image whole: the floor that F1 must be read against.

    Returns precision, recall, f1_score, giou of that mask, `images_hit` (share of the images with a true region
    where it counts as a hit) and `pixel_precision` (the share of pixels it is right about).
    """
    ids = paired_ids(Heatmaps(dict.fromkeys(labels.ids)), labels, ids)
    full = Heatmaps(dict.fromkeys(ids, np.full((CHALLENGE_SIZE, CHALLENGE_SIZE), 255, np.uint8)))
    counts = sweep(full, labels, [0], ids, workers=workers).assign(image=1)
    counts = counts.assign(distorted=counts["n_true"] > 0, hit=counts["hit_true"] > 0)
    names = [*SUMMED, *PIXELS, "iou", "image", "distorted", "hit"]
    values = counts[names].to_numpy(float)
    found = _full_frame_figures(dict(zip(names, values.sum(axis=0), strict=True)))
    draws = _full_frame_figures(dict(zip(names, resampled_sums(values, n, seed).T, strict=True)))
    return {name: Estimate(float(value), *interval_of(np.atleast_1d(draws[name]))) for name, value in found.items()}


def _full_frame_figures(sums: dict) -> dict:
    with np.errstate(invalid="ignore"):  # without a distorted image no share of them is defined
        return region_figures(sums) | {
            "giou": sums["iou"] / sums["image"],
            "images_hit": np.divide(sums["hit"], sums["distorted"]),
            "pixel_precision": sums["intersection"] / sums["predicted_pixels"],
        }
