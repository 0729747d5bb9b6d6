"""Distorted regions of a binary mask and their matching, by the organisers' definition.

Everything happens on a 512 x 512 grid. A region is an external contour drawn filled, so holes and what lies
in them belong to the region around them. Source: the published evaluation of the NTIRE 2025 challenge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

import cv2
import numpy as np

CHALLENGE_SIZE = 512
GRID = CHALLENGE_SIZE**2  # pixels
PREDICTED_AREA_RATIO = 0.0006  # of the frame; the reference's own training loop used 0.0001
TRUE_AREA = 150  # square pixels on the 512 grid
HIT_IOU = 0.1
SMOOTHING = 1e-4  # the organisers', in the IoU of masks; 1 when both are empty


class RegionCounts(NamedTuple):
    """One image at one threshold: regions hit and kept on both sides, pixels on the 512 grid."""

    n_predicted: int
    hit_predicted: int
    n_true: int
    hit_true: int
    predicted_pixels: int
    intersection: int
    union: int


COUNTS = list(RegionCounts._fields)


@dataclass(frozen=True)
class MatchedRegion:
    """A contour (int32 [N, 1, 2], x and y on the 512 grid) and what matching says of it.

    `status` is "hit", "false" (predicted, matches nothing), "missed" (true, matches nothing), "small" (too small to
    count) or "unjudged" (predicted, without a label). `iou` is the best one with a kept region of the other side, 0
    when small.
    """

    contour: np.ndarray
    status: str
    iou: float


class Truth(NamedTuple):
    """The label side of one image, computed once and used for every threshold."""

    mask: np.ndarray  # uint8 0/1 [512, 512]
    contours: list  # the kept ones
    index: np.ndarray  # uint8 (uint16 above 255 regions) [512, 512], 0 outside every region, k + 1 in region k
    areas: np.ndarray  # int [len(contours)], pixels of the filled regions
    pixels: int  # of the mask


def to_grid(mask: np.ndarray) -> np.ndarray:
    """Bring a 0/1 or boolean mask [H, W] of any size to uint8 0/1 [512, 512] as the organisers do.

    The organisers resize predictions only, since their ground truth is 512 x 512 already; here a ground truth
    of another size is resized in the same way.
    """
    mask = np.ascontiguousarray(mask).view(np.uint8) if mask.dtype == bool else mask
    if mask.shape == (CHALLENGE_SIZE, CHALLENGE_SIZE):
        return mask
    # Linear interpolation of 0/1 bytes rounds: a pixel is set when at least half of its weight is.
    return cv2.resize(mask, (CHALLENGE_SIZE, CHALLENGE_SIZE), interpolation=cv2.INTER_LINEAR)


def find_contours(mask: np.ndarray, min_area: float) -> list[np.ndarray]:
    """External contours of a 0/1 mask [512, 512] whose contour area exceeds `min_area` (square pixels)."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    # Noise makes thousands of specks of one or two points, which enclose nothing: they need no area.
    shortest = 3 if min_area >= 0 else 1
    return [contour for contour in contours if len(contour) >= shortest and cv2.contourArea(contour) > min_area]


def filled(contour: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """(rows and columns of a contour's box, which pixels of the box lie inside, bool)."""
    x, y, width, height = cv2.boundingRect(contour)
    inside = np.zeros((height, width), np.uint8)
    cv2.drawContours(inside, [contour], -1, 1, cv2.FILLED, offset=(-x, -y))
    return (slice(y, y + height), slice(x, x + width)), inside.view(bool)


def prepare_truth(mask: np.ndarray) -> Truth:
    """Find the kept regions of a label mask [H, W] (0/1 or boolean, any size)."""
    mask = to_grid(mask)
    contours = find_contours(mask, TRUE_AREA)
    # One index map is enough: filled external contours never overlap.
    index = np.zeros(mask.shape, np.uint8 if len(contours) < 256 else np.uint16)
    for number, contour in enumerate(contours, start=1):
        cv2.drawContours(index, [contour], -1, number, cv2.FILLED)
    areas = np.bincount(index.ravel(), minlength=len(contours) + 1)[1:]
    return Truth(mask, contours, index, areas, cv2.countNonZero(mask))


def pairwise_ious(contours: list[np.ndarray], truth: Truth) -> np.ndarray:
    """IoU of every predicted contour with every kept true region, float [len(contours), len(truth.contours)]."""
    shared = np.zeros((len(contours), len(truth.contours) + 1))  # pixels in common; column 0: with no true region
    for row, contour in zip(shared, contours, strict=True):
        x, y, width, height = cv2.boundingRect(contour)
        # Most regions of a noisy prediction lie where no label is, and need not be drawn.
        if cv2.hasNonZero(truth.index[y : y + height, x : x + width]):
            box, inside = filled(contour)
            row[:] = cv2.calcHist([truth.index[box]], [0], inside.view(np.uint8), [len(row)], [0, len(row)]).ravel()
    intersection = shared[:, 1:]
    return intersection / (shared.sum(axis=1, keepdims=True) + truth.areas - intersection)


def count_regions(mask: np.ndarray, truth: Truth, min_area_ratios: Sequence[float]) -> list[RegionCounts]:
    """Match a predicted 0/1 mask [512, 512] with the label side, for several smallest areas of predicted regions.

    Contours are found and matched once for all of them; pixels count as in `counted_mask`.
    """
    contours = find_contours(mask, min(min_area_ratios) * GRID)
    areas = np.array([cv2.contourArea(contour) for contour in contours])
    hits = pairwise_ious(contours, truth) > HIT_IOU
    counts = []
    for ratio in min_area_ratios:
        kept = areas > ratio * GRID
        left = _only(mask, compress(contours, kept)) if ratio > PREDICTED_AREA_RATIO else mask
        pixels, both = cv2.countNonZero(left), cv2.countNonZero(cv2.bitwise_and(left, truth.mask))
        hit_predicted, hit_true = (int(hits[kept].any(axis=axis).sum()) for axis in (1, 0))
        regions = int(kept.sum()), hit_predicted, len(truth.contours), hit_true
        counts.append(RegionCounts(*regions, pixels, both, pixels + truth.pixels - both))
    return counts


def counted_mask(mask: np.ndarray, min_area_ratio: float) -> np.ndarray:
    """What of a predicted 0/1 mask [512, 512] counts, and is submitted, when regions up to this area do not.

    The scorer leaves out regions up to its own area by itself, but counts their pixels in GIoU; nothing is removed for
    that. Only a larger area, which somebody chose, takes the regions out of the mask.
    """
    return remove_small(mask, min_area_ratio) if min_area_ratio > PREDICTED_AREA_RATIO else mask


def remove_small(mask: np.ndarray, min_area_ratio: float) -> np.ndarray:
    """The 0/1 mask [512, 512] without the regions (and what lies in their holes) of no more than this area."""
    return _only(mask, find_contours(mask, min_area_ratio * GRID))


def _only(mask: np.ndarray, contours) -> np.ndarray:
    inside = np.zeros_like(mask)
    # One by one: contours drawn together would cancel each other where they nest.
    for contour in contours:
        cv2.drawContours(inside, [contour], -1, 1, cv2.FILLED)
    return cv2.bitwise_and(mask, inside)


def classify_regions(
    mask: np.ndarray, truth: Truth, min_area_ratio: float, unmatched: str = "false"
) -> tuple[list[MatchedRegion], list[MatchedRegion]]:
    """The regions of a predicted 0/1 mask [512, 512] and the true ones, with their status, small ones included.

    `unmatched` is the status of predicted regions that hit nothing.
    """
    contours, min_area = find_contours(mask, -1), min_area_ratio * GRID
    ious = pairwise_ious([contour for contour in contours if cv2.contourArea(contour) > min_area], truth)
    true = _with_status(find_contours(truth.mask, -1), TRUE_AREA, ious.max(axis=0, initial=0), "missed")
    return _with_status(contours, min_area, ious.max(axis=1, initial=0), unmatched), true


def _with_status(contours, min_area: float, best_ious: np.ndarray, unmatched: str) -> list[MatchedRegion]:
    best, regions = iter(best_ious), []
    for contour in contours:
        area = cv2.contourArea(contour)
        iou = float(next(best)) if area > min_area else 0.0
        status = "small" if area <= min_area else "hit" if iou > HIT_IOU else unmatched
        regions.append(MatchedRegion(contour, status, iou))
    return regions
