"""Distorted regions of a binary mask and their matching, by the organisers' definition.

Everything happens on a 512 x 512 grid. A region is an external contour drawn filled, so holes and what lies
in them belong to the region around them. Source: the published evaluation of the NTIRE 2025 challenge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import cv2
import numpy as np

CHALLENGE_SIZE = 512
PREDICTED_AREA_RATIO = 0.0006  # of the frame; the reference's own training loop used 0.0001
TRUE_AREA = 150  # square pixels on the 512 grid
HIT_IOU = 0.1
SMOOTHING = 1e-4


@dataclass(frozen=True)
class RegionCounts:
    """One image at one threshold: regions hit and kept on both sides, pixels on the 512 grid."""

    n_predicted: int
    hit_predicted: int
    n_true: int
    hit_true: int
    predicted_pixels: int
    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Foreground IoU with the organisers' smoothing; 1 when both masks are empty."""
        return (self.intersection + SMOOTHING) / (self.union + SMOOTHING)


@dataclass(frozen=True)
class MatchedRegion:
    """A contour (int32 [N, 1, 2], x and y on the 512 grid) and what matching says of it.

    `status` is "hit", "false" (predicted, matches nothing), "missed" (true, matches nothing) or "small"
    (too small to count). `iou` is the best one with a kept region of the other side, 0 when small.
    """

    contour: np.ndarray
    area: float
    status: str
    iou: float


@dataclass(frozen=True)
class Truth:
    """The label side of one image, computed once and used for every threshold."""

    mask: np.ndarray  # uint8 0/1 [512, 512]
    contours: list  # the kept ones
    index: np.ndarray  # int32 [512, 512], 0 outside every region, k + 1 in region k
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


def prepare_truth(mask: np.ndarray) -> Truth:
    """Find the kept regions of a label mask [H, W] (0/1 or boolean, any size)."""
    mask = to_grid(mask)
    contours = find_contours(mask, TRUE_AREA)
    # One index map is enough: filled external contours never overlap.
    index = np.zeros(mask.shape, np.int32)
    for number, contour in enumerate(contours, start=1):
        cv2.drawContours(index, [contour], -1, number, cv2.FILLED)
    areas = np.bincount(index.ravel(), minlength=len(contours) + 1)[1:]
    return Truth(mask, contours, index, areas, cv2.countNonZero(mask))


def pairwise_ious(contours: list[np.ndarray], truth: Truth) -> np.ndarray:
    """IoU of every predicted contour with every kept true region, float [len(contours), len(truth.contours)]."""
    shared = np.zeros((len(contours), len(truth.contours) + 1))  # pixels in common; column 0: with no true region
    for row, contour in zip(shared, contours, strict=True):
        x, y, width, height = cv2.boundingRect(contour)
        under = truth.index[y : y + height, x : x + width]
        # Most regions of a noisy prediction lie where no label is, and need not be drawn.
        if cv2.hasNonZero(under):
            filled = np.zeros((height, width), np.uint8)
            cv2.drawContours(filled, [contour], -1, 1, cv2.FILLED, offset=(-x, -y))
            row[:] = np.bincount(under[filled.view(bool)], minlength=len(row))
    intersection = shared[:, 1:]
    return intersection / (shared.sum(axis=1, keepdims=True) + truth.areas - intersection)


def count_regions(mask: np.ndarray, truth: Truth, min_area_ratio: float, hit_iou: float = HIT_IOU) -> RegionCounts:
    """Match a predicted 0/1 mask [512, 512] with the label side; pixels count as in `counted_mask`."""
    return count_at_areas(mask, truth, (min_area_ratio,), hit_iou)[0]


def count_at_areas(
    mask: np.ndarray, truth: Truth, min_area_ratios: Sequence[float], hit_iou: float = HIT_IOU
) -> list[RegionCounts]:
    """`count_regions` for each smallest area: contours are found and matched once for all of them."""
    contours = find_contours(mask, min(min_area_ratios) * CHALLENGE_SIZE**2)
    areas = np.array([cv2.contourArea(contour) for contour in contours])
    hits = pairwise_ious(contours, truth) > hit_iou
    counts = []
    for ratio in min_area_ratios:
        kept = areas > ratio * CHALLENGE_SIZE**2
        left = _only(mask, list(compress(contours, kept))) if _chosen(ratio) else mask
        counts.append(_counted(left, hits[kept], truth))
    return counts


def _counted(mask: np.ndarray, hits: np.ndarray, truth: Truth) -> RegionCounts:
    """Of a mask and its regions: which of them (rows) hit which true ones (columns)."""
    predicted_pixels = cv2.countNonZero(mask)
    intersection = cv2.countNonZero(cv2.bitwise_and(mask, truth.mask))
    return RegionCounts(
        n_predicted=len(hits),
        hit_predicted=int(hits.any(axis=1).sum()),
        n_true=len(truth.contours),
        hit_true=int(hits.any(axis=0).sum()),
        predicted_pixels=predicted_pixels,
        intersection=intersection,
        union=predicted_pixels + truth.pixels - intersection,
    )


def counted_mask(mask: np.ndarray, min_area_ratio: float) -> np.ndarray:
    """What of a predicted 0/1 mask [512, 512] counts, and is submitted, when regions up to this area do not.

    The scorer leaves out regions up to its own area by itself, but counts their pixels in GIoU; nothing is removed for
    that. Only a larger area, which somebody chose, takes the regions out of the mask.
    """
    return remove_small(mask, min_area_ratio) if _chosen(min_area_ratio) else mask


def _chosen(min_area_ratio: float) -> bool:
    return min_area_ratio > PREDICTED_AREA_RATIO


def match_regions(predicted_mask, true_mask, min_area_ratio=PREDICTED_AREA_RATIO, hit_iou=HIT_IOU) -> RegionCounts:
    """Match the regions of two masks [H, W] (set where above 0, any sizes).

    `min_area_ratio` is the contour area, as a fraction of the frame, that a predicted region must exceed;
    `hit_iou` the IoU that a match must exceed (0.1 in the challenge).
    """
    truth = prepare_truth(np.asarray(true_mask) > 0)
    return count_regions(to_grid(np.asarray(predicted_mask) > 0), truth, min_area_ratio, hit_iou)


def remove_small(mask: np.ndarray, min_area_ratio: float) -> np.ndarray:
    """The 0/1 mask [512, 512] without the regions (and what lies in their holes) of no more than this area."""
    return _only(mask, find_contours(mask, min_area_ratio * CHALLENGE_SIZE**2))


def _only(mask: np.ndarray, contours: list[np.ndarray]) -> np.ndarray:
    filled = np.zeros_like(mask)
    # One by one: contours drawn together would cancel each other where they nest.
    for contour in contours:
        cv2.drawContours(filled, [contour], -1, 1, cv2.FILLED)
    return cv2.bitwise_and(mask, filled)


def classify_regions(
    predicted_mask, true_mask, min_area_ratio=PREDICTED_AREA_RATIO, hit_iou=HIT_IOU
) -> tuple[list[MatchedRegion], list[MatchedRegion]]:
    """The predicted and the true regions of two masks [H, W] with their status, for pictures of them.

    Contours are on the 512 grid: scale x by image width / 512 and y by image height / 512 to draw them.
    """
    truth = prepare_truth(np.asarray(true_mask) > 0)
    return classify(to_grid(np.asarray(predicted_mask) > 0), truth, min_area_ratio, hit_iou)


def classify(
    mask: np.ndarray, truth: Truth, min_area_ratio=PREDICTED_AREA_RATIO, hit_iou=HIT_IOU
) -> tuple[list[MatchedRegion], list[MatchedRegion]]:
    """The same for a predicted 0/1 mask [512, 512] and a label side that is prepared already."""
    contours = find_contours(mask, -1)
    min_area = min_area_ratio * CHALLENGE_SIZE**2
    kept = [contour for contour in contours if cv2.contourArea(contour) > min_area]
    ious = pairwise_ious(kept, truth)
    predicted = _with_status(contours, min_area, ious.max(axis=1, initial=0), hit_iou, "false")
    true = _with_status(find_contours(truth.mask, -1), TRUE_AREA, ious.max(axis=0, initial=0), hit_iou, "missed")
    return predicted, true


def _with_status(contours, min_area, best_ious, hit_iou, unmatched) -> list[MatchedRegion]:
    best, regions = iter(best_ious), []
    for contour in contours:
        area = cv2.contourArea(contour)
        iou = float(next(best)) if area > min_area else 0.0
        status = "small" if area <= min_area else "hit" if iou > hit_iou else unmatched
        regions.append(MatchedRegion(contour, area, status, iou))
    return regions
