"""Regions that annotators drew: checked against the image, drawn, summed into the label heatmap.

Coordinates are pixels of the image as it is shown (see `lib.data.prepare` for EXIF), x to the right, y down. Two
conventions meet. *Edges*: (0, 0) is the upper left corner of the image and pixel i covers i to i + 1, so that x runs
from 0 to the width; a pixel is marked when its centre lies inside. *Centres*: integers are centres of pixels, x runs
from 0 to the width - 1, and the outline is marked as well. The challenge draws rectangles by edges and polygons by
centres, and so do we; most other formats use edges for both.

A region is used whole, used as far as it lies in the image, or left out; the last two are reported.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np

from lib.scale import HEATMAP_LEVELS

# Problems that say that something drawn does not enter the heatmap; after "region clipped" a region does.
LEFT_OUT = (
    "annotator malformed", "region malformed", "region type unknown", "region degenerate", "region outside image",
)  # fmt: skip
ROUNDING = 1e-6  # px beyond the border that are a matter of arithmetic and not worth a report
FARTHEST = 1e5  # px; coordinates beyond, which no image has, are moved here: OpenCV visits every row of a polygon
VOTES = np.array([*HEATMAP_LEVELS, *[255] * 251], np.uint8)  # heatmap value of so many annotators
# EXIF orientations that turn an image by a quarter: what they do to an array [H, W].
QUARTER_TURNS = {
    5: np.transpose,
    6: lambda mask: np.rot90(mask, -1),
    7: lambda mask: np.rot90(mask, 2).T,
    8: np.rot90,
}


@dataclass(frozen=True)
class Region:
    """One drawn region.

    `shape` says what `points`, float64 [N, 2] (x, y), are: "rectangle", two opposite corners by edges; "polygon",
    vertices by centres; "edge polygon", vertices by edges, which may cross themselves (even-odd); "mask", nothing:
    `mask` holds the pixels, bool [h, w], stretched to the image when its size differs.
    """

    annotator: int
    shape: str
    points: np.ndarray
    mask: np.ndarray | None = None

    @classmethod
    def of_mask(cls, annotator: int, mask: np.ndarray) -> "Region":
        return cls(annotator, "mask", np.empty((0, 2)), mask)


class Problem(NamedTuple):
    """One row of `problems.csv`; `problem` is a short stable code, `id` is empty when the whole split is meant."""

    id: str
    problem: str
    detail: str


class RegionError(ValueError):
    """A region cannot be used; `problem` is the code of its row."""

    def __init__(self, problem: str, detail: str):
        super().__init__(detail)
        self.problem = problem


def draw_regions(
    record, width: int, height: int, orientation: int = 1
) -> tuple[list[Region], np.ndarray, list[Problem]]:
    """Draw a record's regions: (regions that are used, bool [A, height, width] a mask an annotator, problems).

    Every region is either in the list or has a row with a code of `LEFT_OUT`. A record may tell the image's size that
    its regions refer to (`record.size`). Where the image has another one, because EXIF turns it by a quarter
    (`orientation`) or because it was resized, the regions are drawn at their own size, then turned or stretched.
    """
    own = record.size or (width, height)
    regions, problems = [], []
    masks = np.zeros((record.n_annotators, height, width), dtype=bool)
    for region in record.regions:
        try:
            part, mask, beyond = _checked_mask(region, *own)
        except RegionError as error:
            problems.append(Problem(record.id, error.problem, f"{_describe(region)}: {error}"))
            continue
        if beyond:
            problems.append(
                Problem(record.id, "region clipped", f"{_describe(region)} reaches outside {own[0]}x{own[1]}")
            )
        if own != (width, height):
            mask = QUARTER_TURNS.get(orientation, np.asarray)(draw(region, *own[::-1]))
            region = Region.of_mask(region.annotator, _stretched(mask, height, width))
            part, mask = np.s_[:, :], region.mask
        regions.append(region)
        masks[region.annotator, *part] |= mask
    if own != (width, height) and record.regions:
        problems.append(_size_problem(record, width, height, orientation))
    return regions, masks, problems


def _size_problem(record, width: int, height: int, orientation: int) -> Problem:
    own = "{}x{}".format(*record.size)
    if record.size == (height, width) and orientation in QUARTER_TURNS:
        detail = f"regions refer to the {own} pixels before EXIF orientation {orientation}; they are turned with them"
        return Problem(record.id, "regions turned", detail)
    detail = f"regions refer to {own}, the image has {width}x{height}; they are stretched to it"
    return Problem(record.id, "size differs", detail)


def _checked_mask(region: Region, width: int, height: int) -> tuple[tuple[slice, slice], np.ndarray, bool]:
    """(part of the image, its mask, whether the region reaches outside); RegionError when no pixel is marked."""
    points = np.asarray(region.points, dtype=np.float64)
    if not np.isfinite(points).all():
        raise RegionError("region malformed", "not every coordinate is a finite number")
    if "polygon" in region.shape and _is_flat(points):
        raise RegionError("region degenerate", "its area is zero")
    limit = _limit(region, width, height)
    beyond = bool(((points < -ROUNDING) | (points > limit + ROUNDING)).any())
    part = extent([region], height, width)
    mask = draw(region, height, width, part)
    if not mask.any():
        if beyond:
            raise RegionError("region outside image", f"no part of it is in 0..{limit[0]}, 0..{limit[1]}")
        raise RegionError("region degenerate", "it holds no pixel")
    return part, mask, beyond


def _limit(region: Region, width: int, height: int) -> np.ndarray:
    """The greatest x and y of the image, in the region's convention."""
    return np.array([width, height]) - (region.shape == "polygon")


def _is_flat(points: np.ndarray) -> bool:
    """Whether a polygon has no area. Collinearity is asked, since a figure of eight has a signed area of zero, too."""
    points = np.clip(points, -FARTHEST, FARTHEST)
    offsets = points - points[0]
    far = offsets[np.argmax(np.hypot(*offsets.T))]
    distances = np.abs(offsets[:, 0] * far[1] - offsets[:, 1] * far[0])  # times |far|
    return bool(distances.max() <= 1e-9 * max(far @ far, 1e-9))


def _describe(region: Region) -> str:
    points = region.points
    shown = " ".join(f"({x:g}, {y:g})" for x, y in points[:4])
    more = f" and {len(points) - 4} more" if len(points) > 4 else ""
    return f"annotator {region.annotator}, {region.shape} {shown}{more}"


def extent(regions: list[Region], height: int, width: int) -> tuple[slice, slice]:
    """The part of an image, rows and columns, that holds every pixel of some regions."""
    if any(region.shape == "mask" for region in regions):
        return np.s_[0:height, 0:width]
    points = np.concatenate([region.points for region in regions] or [np.zeros((1, 2))])
    left, top = np.clip(np.floor(points.min(axis=0)), 0, [width, height]).astype(int)
    right, bottom = np.clip(np.ceil(points.max(axis=0)) + 1, 0, [width, height]).astype(int)
    return np.s_[top:bottom, left:right]


def draw(region: Region, height: int, width: int, part: tuple[slice, slice] | None = None) -> np.ndarray:
    """bool [height, width]: the pixels of a region in an image; or of that `part` of it, which holds all of them."""
    if region.shape == "mask":
        return _stretched(np.asarray(region.mask, dtype=bool), height, width)
    rows, columns = part or np.s_[0:height, 0:width]
    top, bottom, left, right = rows.start, rows.stop, columns.start, columns.stop
    points = np.clip(region.points, -FARTHEST, FARTHEST)
    mask = np.zeros((bottom - top, right - left), dtype=np.uint8)
    if region.shape == "edge polygon":
        return _fill(points, top, bottom, left, right)
    if region.shape == "rectangle":
        x0, y0 = np.maximum(_first_centre(points.min(axis=0)) - [left, top], 0)
        x1, y1 = np.maximum(_first_centre(points.max(axis=0)) - [left, top], 0)
        mask[y0:y1, x0:x1] = 1
    elif mask.size:
        cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1, offset=(-left, -top))
    return mask.view(bool)


def _first_centre(coordinates: np.ndarray) -> np.ndarray:
    """Of edge coordinates: the first pixel whose centre does not lie before them."""
    return np.ceil(coordinates - 0.5).astype(np.int64)


def _fill(points: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """The pixels whose centres lie inside of a polygon: every edge toggles what is right of it, row by row."""
    toggles = np.zeros((bottom - top, right - left + 1), dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        rows = np.arange(*np.clip(_first_centre(np.array([min(y0, y1), max(y0, y1)])), top, bottom))
        if len(rows):  # not an edge along a row
            crossings = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            toggles[rows - top, np.clip(_first_centre(crossings), left, right) - left] ^= True
    return np.logical_xor.accumulate(toggles[:, :-1], axis=1)


def _stretched(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    if mask.shape == (height, width):
        return mask
    return cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT).view(bool)


def outlines(region: Region, height: int, width: int) -> list[tuple[str, np.ndarray]]:
    """A region to be shown: ("rectangle" or "polygon", points [N, 2]) in the image, several where it has parts."""
    limit = _limit(region, width, height)
    if region.shape == "rectangle":
        return [("rectangle", np.clip([region.points.min(axis=0), region.points.max(axis=0)], 0, limit))]
    if region.shape != "mask" and ((region.points >= 0) & (region.points <= limit)).all():
        return [("polygon", region.points)]
    return mask_outlines(draw(region, height, width))


def mask_outlines(mask: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The outer contours of a mask [H, W] as polygons."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [("polygon", contour[:, 0].astype(np.float64)) for contour in contours]


def region_area(shape: str, points) -> float:
    """Pixels that a region encloses; `points` are a rectangle's two corners or a polygon's vertices, x0, y0, x1, ..."""
    points = np.asarray(points, float).reshape(-1, 2)
    if shape == "rectangle":
        return float(np.prod(np.abs(points[1] - points[0])))
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def label_heatmap(masks: np.ndarray, consensus: bool = False) -> np.ndarray:
    """uint8 [H, W] from bool [A, H, W]: how many annotators marked a pixel, as HEATMAP_LEVELS; four or more are 255.

    With `consensus` a single mask is what all agreed upon, or all that is known, and its pixels are 255.
    """
    if consensus and len(masks) == 1:
        return masks[0] * np.uint8(255)
    count = np.zeros(masks.shape[1:], dtype=np.uint8)
    for mask in masks:
        cv2.add(count, mask.view(np.uint8), count)  # stops at 255, where NumPy would wrap to zero
    return cv2.LUT(count, VOTES)


def agreement(masks: np.ndarray) -> float | None:
    """Mean IoU over all pairs of annotators, 0..1; two empty masks agree (1); None below two annotators."""
    if len(masks) < 2:
        return None
    sizes, ious = [np.count_nonzero(mask) for mask in masks], []
    for i, j in combinations(range(len(masks)), 2):
        shared = np.count_nonzero(masks[i] & masks[j])
        ious.append(shared / union if (union := sizes[i] + sizes[j] - shared) else 1.0)
    return float(np.mean(ious))
