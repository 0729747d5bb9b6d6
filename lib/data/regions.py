"""Regions that annotators drew: parsed, clipped to the image, rasterised, summed into the label heatmap.

Coordinates are pixels of the image as it is shown (see `lib.data.prepare` for EXIF), x to the right, y down,
integers at pixel centres. A region is used whole, used clipped, or left out; the last two are reported.
"""

from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np

from lib.scale import HEATMAP_LEVELS

# Problems after which a region does not enter the heatmap; "region clipped" is the one after which it does.
LEFT_OUT = ("region malformed", "region type unknown", "region degenerate", "region outside image")
ROUNDING = 1e-6  # px beyond the border that are a matter of arithmetic and not worth a report
FARTHEST = 1e7  # px; coordinates beyond are moved here first, so that products of two of them stay exact enough


@dataclass(frozen=True)
class Region:
    """One drawn region. `points` is float64 [N, 2] (x, y): two opposite corners or a polygon's vertices."""

    annotator: int
    shape: str
    points: np.ndarray


@dataclass(frozen=True)
class Problem:
    """One row of `problems.csv`; `problem` is a short stable code, `id` is empty when the whole split is meant."""

    id: str
    problem: str
    detail: str


class RegionError(ValueError):
    """A region cannot be used; `problem` is the code of its row."""

    def __init__(self, problem: str, detail: str):
        super().__init__(detail)
        self.problem = problem


def clip_regions(record, width: int, height: int) -> tuple[list[Region], list[Problem]]:
    """Cut a record's regions to the pixels 0..width-1, 0..height-1.

    Rectangles come back as (top-left, bottom-right) whatever corners were given. Every region is either
    in the first list or has a row with a code of `LEFT_OUT`; cut ones also have a row "region clipped".
    """
    regions, problems = [], []
    limit = np.array([width - 1, height - 1], dtype=np.float64)
    for region in record.regions:
        where = f"annotator {region.annotator}, {region.shape} {_describe(region.points)}"
        try:
            points = _clip(region, limit)
        except RegionError as error:
            problems.append(Problem(record.id, error.problem, f"{where}: {error}"))
            continue
        if ((region.points < -ROUNDING) | (region.points > limit + ROUNDING)).any():
            problems.append(Problem(record.id, "region clipped", f"{where} reaches outside {width}x{height}"))
        regions.append(Region(region.annotator, region.shape, points))
    return regions, problems


def _clip(region: Region, limit: np.ndarray) -> np.ndarray:
    points = np.asarray(region.points, dtype=np.float64)
    if not np.isfinite(points).all():
        raise RegionError("region malformed", "not every coordinate is a finite number")
    if len(points) < (2 if region.shape == "rectangle" else 3):
        raise RegionError("region degenerate", f"{len(points)} points span nothing")
    if (points.max(axis=0) < 0).any() or (points.min(axis=0) > limit).any():
        raise RegionError("region outside image", f"no part of it is in 0..{limit[0]:g}, 0..{limit[1]:g}")
    points = np.clip(points, -FARTHEST, FARTHEST)
    if region.shape == "rectangle":
        points = np.stack([points.min(axis=0), points.max(axis=0)])
    if _is_flat(points, region.shape):
        raise RegionError("region degenerate", "its area is zero")
    if ((points >= 0) & (points <= limit)).all():
        return points
    points = np.clip(points, 0, limit) if region.shape == "rectangle" else _clip_polygon(points, limit)
    if len(points) < 2 or _is_flat(points, region.shape):
        raise RegionError("region outside image", f"only its edge touches 0..{limit[0]:g}, 0..{limit[1]:g}")
    return points


def _is_flat(points: np.ndarray, shape: str) -> bool:
    """Zero area. The shoelace sum would also be zero for a figure of eight, so collinearity is asked instead."""
    if shape == "rectangle":
        return bool((points[0] == points[1]).any())
    offsets = points - points[0]
    far = offsets[np.argmax(np.hypot(*offsets.T))]
    distances = np.abs(offsets[:, 0] * far[1] - offsets[:, 1] * far[0])  # times |far|
    return bool(distances.max() <= 1e-9 * max(far @ far, 1e-9))


def _clip_polygon(points: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Sutherland-Hodgman: keep the inside of the four borders one after the other; may return no point."""
    for axis, sign, bound in ((0, 1, 0.0), (0, -1, -limit[0]), (1, 1, 0.0), (1, -1, -limit[1])):
        inside = sign * points[:, axis] - bound  # >= 0 on the image's side
        kept = []
        for k, point in enumerate(points):
            before = inside[k - 1]
            if (before >= 0) != (inside[k] >= 0):
                crossing = points[k - 1] + (point - points[k - 1]) * before / (before - inside[k])
                crossing[axis] = sign * bound
                kept.append(crossing)
            if inside[k] >= 0:
                kept.append(point)
        points = np.array(kept).reshape(-1, 2)
    return np.clip(points, 0, limit)  # interpolation may leave the last digit outside


def _describe(points: np.ndarray) -> str:
    shown = " ".join(f"({x:g}, {y:g})" for x, y in points[:4])
    return shown + (f" and {len(points) - 4} more" if len(points) > 4 else "")


def annotator_masks(regions: list[Region], n_annotators: int, height: int, width: int) -> np.ndarray:
    """bool [A, H, W]: the union of each annotator's regions, corners and outlines included.

    Coordinates are rounded to whole pixels, as the challenge's own labels are drawn with OpenCV.
    """
    masks = np.zeros((n_annotators, height, width), dtype=np.uint8)
    for region in regions:
        points = np.rint(region.points).astype(np.int32)
        if region.shape == "rectangle":
            (x0, y0), (x1, y1) = points.tolist()
            cv2.rectangle(masks[region.annotator], (x0, y0), (x1, y1), 1, thickness=cv2.FILLED)
        else:
            cv2.fillPoly(masks[region.annotator], [points], 1)
    return masks.view(bool)


def region_area(shape: str, points) -> float:
    """Pixels that a region encloses; `points` are a rectangle's two corners or a polygon's vertices, x0, y0, x1, ..."""
    points = np.asarray(points, float).reshape(-1, 2)
    if shape == "rectangle":
        return float(np.prod(np.abs(points[1] - points[0])))
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def label_heatmap(masks: np.ndarray) -> np.ndarray:
    """uint8 [H, W] from bool [A, H, W]: how many annotators marked a pixel, as HEATMAP_LEVELS; four or more are 255."""
    count = np.zeros(masks.shape[1:], dtype=np.uint8)
    for mask in masks:  # counting stops at four: a sum of 256 annotators in 8 bits would wrap to zero
        count += mask & (count < len(HEATMAP_LEVELS) - 1)
    return np.take(np.array(HEATMAP_LEVELS, dtype=np.uint8), count)


def agreement(masks: np.ndarray) -> float | None:
    """Mean IoU over all pairs of annotators, 0..1; two empty masks agree (1); None below two annotators."""
    pairs = list(combinations(masks, 2))
    if not pairs:
        return None
    return float(np.mean([_iou(a, b) for a, b in pairs]))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0
