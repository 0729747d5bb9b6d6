"""Pictures of masks: heatmaps over images, differences, outlines of regions; all with OpenCV, in milliseconds.

Images are uint8 RGB [H, W, 3], heatmaps uint8 [H, W], masks bool [H, W]; they have the image's size where
nothing else is said. Colours are `lib.plots.style`'s.
"""

import os
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache

import cv2
import numpy as np
from matplotlib.colors import to_rgb

from lib.metrics.matching import CHALLENGE_SIZE, MatchedRegion
from lib.plots.style import STATUS_COLOURS, heat_colours
from lib.scale import HEATMAP_LEVELS

BELOW_THRESHOLD = 0.4  # how strongly values up to the threshold show, compared with those above
# Colour of every status, in the order of drawing: the last lies on top.
OUTLINES = dict.fromkeys(("small", "unjudged", "missed", "false", "hit"), "#FFFFFF") | STATUS_COLOURS
JPEG_QUALITY = 90


def rgb(colour: str) -> tuple[int, int, int]:
    """A matplotlib colour as 8-bit RGB."""
    return tuple(round(255 * part) for part in to_rgb(colour))


def fit(image: np.ndarray, side: int) -> np.ndarray:
    """Resize [H, W, 3] so that its longer side has `side` pixels; small images grow, so that outlines stay thin."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def resize(heatmap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a predicted heatmap to `size` (width, height) smoothly."""
    return heatmap if heatmap.shape[::-1] == size else cv2.resize(heatmap, size, interpolation=cv2.INTER_LINEAR)


def resize_levels(heatmap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a label heatmap to `size` (width, height); its levels are counts of annotators and must not mix."""
    return heatmap if heatmap.shape[::-1] == size else cv2.resize(heatmap, size, interpolation=cv2.INTER_NEAREST_EXACT)


def heat_overlay(
    image: np.ndarray, heatmap: np.ndarray, opacity: float = 0.6, threshold: int | None = None
) -> np.ndarray:
    """A heatmap of any size over an image; where it is 0 the image stays as it is. The colours always span 0..255.

    With a threshold (0..255), what lies above it shows in full and the rest faintly; without one, colours show in
    full from what one annotator marks on, and fade below.
    """
    heatmap = resize(heatmap, image.shape[1::-1])
    weight = cv2.LUT(heatmap, opacity * _strength(threshold))
    return cv2.blendLinear(cv2.applyColorMap(heatmap, _heat_table()), image, weight, 1 - weight)


def _strength(threshold: int | None) -> np.ndarray:
    """How strongly each heatmap value shows, float32 [256] in 0..1."""
    values = np.arange(256, dtype=np.float32)
    if threshold is None:
        return np.minimum(values / HEATMAP_LEVELS[1], 1)
    return np.where(values > threshold, np.float32(1), BELOW_THRESHOLD * values / 255)


def difference_overlay(image: np.ndarray, predicted: np.ndarray, true: np.ndarray, opacity: float) -> np.ndarray:
    """Two masks over the image, coloured by what each pixel is: hit (in both), missed (true only) or false."""
    kinds = predicted.astype(np.uint8) + 2 * true.astype(np.uint8)  # 0 neither, 1 false, 2 missed, 3 hit
    colours = np.zeros((256, 1, 3), np.uint8)
    colours[1:4, 0] = [rgb(STATUS_COLOURS[name]) for name in ("false", "missed", "hit")]
    weight = np.float32(opacity) * (kinds > 0)
    return cv2.blendLinear(cv2.applyColorMap(kinds, colours), image, weight, 1 - weight)


def draw_regions(picture: np.ndarray, regions: Iterable[MatchedRegion]) -> np.ndarray:
    """Outline matched regions in the colours of their status; returns a new picture.

    Missed ones are dashed, small ones thin.
    """
    picture, regions = picture.copy(), list(regions)
    for status, colour in OUTLINES.items():  # what matters most is drawn last
        lines = [_scaled(region, picture) for region in regions if region.status == status]
        _outline(picture, lines, rgb(colour), 1 if status == "small" else 3, 10 * (status == "missed"))
    return picture


def tint_regions(picture: np.ndarray, regions: Iterable[MatchedRegion], opacity: float = 0.5) -> np.ndarray:
    """Fill matched regions with the colours of their status; returns a new picture."""
    tint = picture.copy()
    for region in regions:
        points = np.rint(_scaled(region, picture)).astype(np.int32)
        cv2.drawContours(tint, [points], -1, rgb(OUTLINES[region.status]), cv2.FILLED)
    return cv2.addWeighted(picture, 1 - opacity, tint, opacity, 0)


def _scaled(region: MatchedRegion, picture: np.ndarray) -> np.ndarray:
    """The contour, which lies on the 512 grid, in pixels of a picture: float [N, 2]."""
    scale = np.array(picture.shape[1::-1]) / CHALLENGE_SIZE
    return (region.contour[:, 0] + 0.5) * scale - 0.5


def draw_annotators(picture: np.ndarray, regions: Sequence[tuple[int, str, np.ndarray]], scale: tuple) -> np.ndarray:
    """Outline what annotators drew, each region with its annotator's number; returns a new picture.

    `regions` are (annotator, "rectangle" or "polygon", float [N, 2] points in image pixels); `scale` is (x, y) from
    image pixels to picture pixels.
    """
    picture, lines = picture.copy(), []
    for _, shape, points in regions:
        points = points * np.asarray(scale)
        if shape == "rectangle":
            (x0, y0), (x1, y1) = points
            points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        lines.append(points)
    _outline(picture, lines, (255, 255, 255), 1, 0)
    for (annotator, _, _), points in zip(regions, lines, strict=True):
        # A step to the right for each annotator, since regions that agree begin at the same place.
        _label(picture, str(annotator + 1), points[points[:, 1].argmin()] + (4 + 13 * annotator, 15))
    return picture


def thumbnail(path, side: int) -> bytes:
    """A small JPEG of an image file, empty when it cannot be read; decoded at a quarter of its size, which is quick."""
    data = np.fromfile(path, np.uint8) if os.path.isfile(path) else np.empty(0, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_REDUCED_COLOR_4) if data.size else None
    return b"" if image is None else cv2.imencode(".jpg", fit(image, side))[1].tobytes()


def placeholder(width: int, height: int, side: int, text: str) -> np.ndarray:
    """What stands where an image cannot be read: a grey picture of the image's shape that says why."""
    picture = fit(np.full((height, width, 3), 225, np.uint8), side)
    for number, line in enumerate(textwrap.wrap(text, max(10, picture.shape[1] // 10))[:6]):
        place = (8, 24 + 18 * number)
        cv2.putText(picture, line, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (90, 90, 90), 1, cv2.LINE_AA)
    return picture


def encode(picture: np.ndarray) -> bytes:
    """JPEG bytes; colours at full resolution, since outlines are thin."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)[1].tobytes()


@cache
def _heat_table() -> np.ndarray:
    """RGB of every heatmap value, uint8 [256, 1, 3] as OpenCV wants it."""
    return np.round(255 * heat_colours()(np.arange(256))[:, None, :3]).astype(np.uint8)


def _outline(picture, lines: list[np.ndarray], colour: tuple, thickness: int, dash: int) -> None:
    """Closed lines with a dark rim, so that they show on any background; `dash` pixels long dashes, 0 for none."""
    if dash:
        lines = [part for line in lines for part in _dashes(line, dash)]
    lines = [np.rint(line).astype(np.int32) for line in lines]
    for tint, width in (((0, 0, 0), thickness + 2), (colour, thickness)):
        cv2.polylines(picture, lines, not dash, tint, width, cv2.LINE_AA)


def _dashes(points: np.ndarray, length: int) -> list[np.ndarray]:
    """Cut a closed line into dashes of `length` pixels with gaps as long, each [3, 2]."""
    closed = np.vstack([points, points[:1]])
    along = np.concatenate([[0], np.hypot(*np.diff(closed, axis=0).T).cumsum()])
    starts = np.arange(0, max(along[-1], 1), 2 * length)[:, None] + np.array([0, length / 2, length])
    places = [np.interp(starts.clip(max=along[-1]), along, closed[:, axis]) for axis in (0, 1)]
    return list(np.stack(places, axis=-1))


def _label(picture, text: str, place: np.ndarray) -> None:
    height, width = picture.shape[:2]
    x, y = (int(value) for value in np.clip(place, (2, 14), (width - 14, height - 3)))
    for tint, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, tint, thickness, cv2.LINE_AA)
