"""Pictures of masks: heatmaps over images and marks of regions; all with OpenCV, in milliseconds.

Images are uint8 RGB [H, W, 3], heatmaps uint8 [H, W]; they have the image's size where nothing else is said.
"""

from functools import cache

import cv2
import numpy as np
from matplotlib.colors import to_rgb

from lib.metrics.matching import CHALLENGE_SIZE, MatchedRegion
from lib.plots.style import STATUS_COLOURS, heat_colours
from lib.scale import HEATMAP_LEVELS


def rgb(colour: str) -> tuple[int, int, int]:
    """A matplotlib colour as 8-bit RGB."""
    return tuple(round(255 * part) for part in to_rgb(colour))


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """Resize [H, W, 3] so that its longer side has `side` pixels; small images grow, so that outlines stay thin."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def heat_overlay(image: np.ndarray, heatmap: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """A heatmap of any size over an image; where it is 0 the image stays as it is.

    The colours always span 0..255. They show in full from what one annotator marks on, and fade below.
    """
    heatmap = cv2.resize(heatmap, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colours, strength = _heat_tables()
    weight = cv2.LUT(heatmap, opacity * strength)
    return cv2.blendLinear(cv2.applyColorMap(heatmap, colours), image, weight, 1 - weight)


def heat_layer(heatmap: np.ndarray, opacity: float = 0.75) -> np.ndarray:
    """The colours of a heatmap as a layer of its own, uint8 RGBA [H, W, 4]: transparent where it is 0."""
    colours, strength = _heat_tables()
    alpha = cv2.LUT(heatmap, np.round(255 * opacity * strength).astype(np.uint8))
    return np.dstack([cv2.applyColorMap(heatmap, colours), alpha])


@cache
def _heat_tables() -> tuple[np.ndarray, np.ndarray]:
    """Of every heatmap value its RGB, uint8 [256, 1, 3], and how strongly it shows, float32 [256] in 0..1."""
    colours = np.round(255 * heat_colours()(np.arange(256))[:, None, :3]).astype(np.uint8)
    return colours, np.minimum(np.arange(256, dtype=np.float32) / HEATMAP_LEVELS[1], 1)


def mark_regions(image: np.ndarray, predicted: list[MatchedRegion], true: list[MatchedRegion]) -> np.ndarray:
    """A copy of the image [H, W, 3] with true regions tinted and predicted ones outlined in the colour of their status.

    The regions are those of `lib.metrics.regions.compare_image`; those too small to count are left out. Predicted
    ones that no label judges (status "unjudged") are white.
    """
    scale, tint = np.array(image.shape[1::-1]) / CHALLENGE_SIZE, image.copy()

    def outline(region: MatchedRegion) -> list[np.ndarray]:  # the contour lies on the 512 grid
        return [np.rint((region.contour + 0.5) * scale - 0.5).astype(np.int32)]

    for region in [region for region in true if region.status != "small"]:
        cv2.drawContours(tint, outline(region), -1, rgb(STATUS_COLOURS[region.status]), cv2.FILLED)
    picture = cv2.addWeighted(image, 0.5, tint, 0.5, 0)
    counted = [region for region in predicted if region.status != "small"]
    for region in sorted(counted, key=lambda region: region.status == "hit"):  # hits lie on top
        colour = rgb(STATUS_COLOURS.get(region.status, "white"))
        for line, width in (((0, 0, 0), 5), (colour, 3)):  # a dark rim shows on any background
            cv2.polylines(picture, outline(region), True, line, width, cv2.LINE_AA)
    return picture
