"""Choosing how a heatmap becomes a mask: threshold, minimum area, smoothing.

Choose on one split and report on another: the best of many settings looks better than it is on the split that
chose it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.metrics.counts import sweep_areas
from lib.metrics.figures import best_threshold, score_table, threshold_curve
from lib.metrics.mapping import portable
from lib.metrics.matching import PREDICTED_AREA_RATIO
from lib.metrics.setting import blurred


@dataclass(frozen=True)
class Smoothed:
    """Predictions seen through a Gaussian blur; `sigma` in pixels of the 512 grid, 0 for none."""

    source: Any
    sigma: float

    @property
    def ids(self) -> list[str]:
        return self.source.ids

    @property
    def path(self) -> Path:
        """The folder of the store behind it."""
        return self.source.path

    @property
    def table(self) -> pd.DataFrame:
        return self.source.table

    def heatmap(self, id: str) -> np.ndarray:
        """uint8 [H, W], blurred in proportion to its own size."""
        return blurred(self.source.heatmap(id), self.sigma)

    def portable(self, ids: Iterable[str]) -> "Smoothed":
        """The same for a worker process, which then does the blurring."""
        return Smoothed(portable(self.source, ids), self.sigma)


def calibrate(
    predictions, labels, thresholds, min_area_ratios=(PREDICTED_AREA_RATIO,), smoothings=(0.0,), ids=None, workers=None
) -> pd.DataFrame:
    """The threshold curves of every combination: `threshold_curve`, with `min_area_ratio` and `smoothing`.

    `min_area_ratios` are contour areas as fractions of the frame: predicted regions up to there are dropped. The
    scorer drops those up to 0.0006 anyway, so smaller values are refused.
    """
    too_small = [ratio for ratio in min_area_ratios if ratio < PREDICTED_AREA_RATIO]
    if too_small:
        raise InputError(f"Minimum areas {too_small} have no effect in the scorer; use {PREDICTED_AREA_RATIO} or more")
    scores, curves = score_table(predictions, labels, ids), []
    for sigma in smoothings:
        source = Smoothed(predictions, sigma)
        for ratio, counts in sweep_areas(source, labels, thresholds, min_area_ratios, ids, workers).items():
            curves.append(threshold_curve(counts, scores).assign(min_area_ratio=ratio, smoothing=sigma))
    return pd.concat(curves, ignore_index=True)


def best_setting(curves: pd.DataFrame, by: str = "final_score") -> dict:
    """The best `threshold`, `min_area_ratio` and `smoothing` of `calibrate`, with the value of `by` there."""
    settings = []
    for (ratio, sigma), curve in curves.groupby(["min_area_ratio", "smoothing"]):
        if curve[by].notna().any():
            threshold = best_threshold(curve, by)
            value = float(curve.loc[curve["threshold"] == threshold, by].iloc[0])
            settings.append({"threshold": threshold, "min_area_ratio": ratio, "smoothing": sigma, by: value})
    if not settings:
        raise InputError(f"No setting has a defined {by!r}; choose by another figure")
    return max(settings, key=lambda setting: -setting[by] if by == "rmse_mos" else setting[by])
