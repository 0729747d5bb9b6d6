"""How a heatmap becomes regions: the setting of a run, what it leaves of a heatmap, and how it is chosen.

Choose on one split and report on another: the best of many settings looks better than it is on the split that
chose it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from lib.evaluation_file import read_evaluation
from lib.metrics.counts import score_table, sweep, threshold_curve
from lib.metrics.matching import CHALLENGE_SIZE, PREDICTED_AREA_RATIO, remove_small, to_grid

USUAL_THRESHOLD = 90  # of the published solution, where there are no labels to choose one on


@dataclass(frozen=True)
class Setting:
    """A heatmap is blurred with `smoothing`, a pixel counts above `threshold`, small regions do not.

    `smoothing` is the sigma in pixels of the 512 grid, `min_area` a contour area as a fraction of the frame.
    """

    threshold: int
    min_area: float = PREDICTED_AREA_RATIO
    smoothing: float = 0.0

    def __str__(self) -> str:
        blur = f", blurred by {self.smoothing:g} pixels" if self.smoothing else ""
        return f"threshold {self.threshold}, regions above {self.min_area:.2%} of the frame{blur}"

    def thresholded(self, heatmap: np.ndarray) -> np.ndarray:
        """The pixels of a heatmap uint8 [H, W] above the threshold: 0/1, uint8 [512, 512]."""
        return to_grid(blurred(heatmap, self.smoothing) > self.threshold)

    def mask(self, heatmap: np.ndarray) -> np.ndarray:
        """The same without small regions."""
        return remove_small(self.thresholded(heatmap), self.min_area)


def blurred(heatmap: np.ndarray, sigma: float) -> np.ndarray:
    """uint8 [H, W] under a Gaussian of `sigma` pixels of the 512 grid, in proportion to its own size."""
    if sigma == 0:
        return heatmap
    across, down = (sigma * side / CHALLENGE_SIZE for side in heatmap.shape[::-1])
    return cv2.GaussianBlur(heatmap, None, sigmaX=across, sigmaY=down)


class Smoothed:
    """Predictions seen through a blur; `sigma` in pixels of the 512 grid. See `lib.metrics.heatmaps`."""

    def __init__(self, source, sigma: float):
        self.source, self.sigma, self.ids, self.table = source, sigma, source.ids, source.table
        self.path = getattr(source, "path", None)  # the folder of the store behind it

    def heatmap(self, id: str) -> np.ndarray:
        return blurred(self.source.heatmap(id), self.sigma)

    def only(self, ids: Iterable[str]) -> "Smoothed":
        return Smoothed(self.source.only(ids), self.sigma)


@dataclass(frozen=True)
class Grid:
    """The settings to try: every combination of these; see `Setting`."""

    thresholds: tuple[int, ...]
    min_areas: tuple[float, ...] = (PREDICTED_AREA_RATIO,)
    smoothings: tuple[float, ...] = (0.0,)

    def __len__(self) -> int:
        return len(self.thresholds) * len(self.min_areas) * len(self.smoothings)

    def curves(self, predictions, labels, ids=None) -> pd.DataFrame:
        """`lib.metrics.counts.threshold_curve` of each area and blur, with `min_area_ratio` and `smoothing`."""
        scores, curves = score_table(predictions, labels, ids), []
        for sigma in self.smoothings:
            source = Smoothed(predictions, sigma)
            counts = sweep(source, labels, self.thresholds, ids, self.min_areas)
            for ratio, part in counts.groupby("min_area_ratio"):
                curves.append(threshold_curve(part, scores).assign(min_area_ratio=ratio, smoothing=sigma))
        return pd.concat(curves, ignore_index=True)


def best_setting(curves: pd.DataFrame) -> Setting:
    """The setting of `Grid.curves` with the highest final score; of equals the lowest area, blur and threshold."""
    best = curves.sort_values(["min_area_ratio", "smoothing", "threshold"], ignore_index=True)
    best = best.loc[best["final_score"].idxmax()]
    return Setting(int(best["threshold"]), float(best["min_area_ratio"]), float(best["smoothing"]))


def chosen_setting(run) -> Setting:
    """What notebook 3 chose, from the run's evaluation.json; 90 and the scorer's own when it was not evaluated."""
    found = read_evaluation(run) or {"threshold": USUAL_THRESHOLD}
    smallest, smoothing = found.get("min_area_ratio", PREDICTED_AREA_RATIO), found.get("smoothing", 0)
    return Setting(found["threshold"], float(smallest), float(smoothing))
