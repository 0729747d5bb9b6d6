"""How a heatmap becomes regions: the setting that notebook 3 chooses for a run, and what it leaves of a heatmap."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lib.errors import InputError
from lib.evaluation_file import NAME, read_evaluation
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

    def mask(self, heatmap: np.ndarray) -> np.ndarray:
        """What counts of a heatmap uint8 [H, W]: 0/1, uint8 [512, 512]."""
        return remove_small(to_grid(blurred(heatmap, self.smoothing) > self.threshold), self.min_area)


def blurred(heatmap: np.ndarray, sigma: float) -> np.ndarray:
    """uint8 [H, W] under a Gaussian of `sigma` pixels of the 512 grid, in proportion to its own size."""
    if sigma == 0:
        return heatmap
    across, down = (sigma * side / CHALLENGE_SIZE for side in heatmap.shape[::-1])
    return cv2.GaussianBlur(heatmap, None, sigmaX=across, sigmaY=down)


def chosen_setting(run) -> Setting:
    """What notebook 3 chose, from the run's evaluation.json; 90 and the scorer's own when it was not evaluated."""
    found = read_evaluation(run) or {"threshold": USUAL_THRESHOLD}
    try:
        smallest, smoothing = found.get("min_area_ratio", PREDICTED_AREA_RATIO), found.get("smoothing", 0)
        return Setting(int(found["threshold"]), float(smallest), float(smoothing))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{Path(run) / NAME} holds no threshold; evaluate the run again or give one") from None
