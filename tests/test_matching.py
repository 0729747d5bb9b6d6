"""Regions and their matching: hand-computed cases, and equality with a slow, obvious implementation."""

import cv2
import numpy as np
from example_masks import frame, related_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lib.metrics.matching import (
    CHALLENGE_SIZE,
    PREDICTED_AREA_RATIO,
    TRUE_AREA,
    RegionCounts,
    count_regions,
    counted_mask,
    prepare_truth,
    to_grid,
)
from lib.metrics.regions import compare_image

EQUAL_AREA = TRUE_AREA / CHALLENGE_SIZE**2  # makes both sides of a match keep the same regions
SEEDS = st.integers(0, 2**32 - 1)


def obvious_regions(mask: np.ndarray, min_area: float) -> list[np.ndarray]:
    """Connected parts with their holes filled, without those inside another, by their outline's area."""
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    filled = []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        filled.append(np.zeros(mask.shape, bool))
        filled[-1][box] = fill_holes(parts[box] == number)
    covered, outer = np.zeros(mask.shape, bool), []
    for one in sorted(filled, key=np.sum, reverse=True):
        if not (one & covered).any() and outline_area(one) > min_area:
            outer.append(one)
        covered |= one
    return outer


def fill_holes(part: np.ndarray) -> np.ndarray:
    """What cannot be reached from outside without crossing the part, diagonal steps not allowed."""
    background, _ = ndimage.label(np.pad(~part, 1, constant_values=True))
    return (background != background[0, 0])[1:-1, 1:-1]


def outline_area(region: np.ndarray) -> float:
    """Area of the polygon through the border pixels' centres: every 2 x 2 block counts by its filled corners."""
    region = region.astype(np.int8)
    blocks = region[1:, 1:] + region[1:, :-1] + region[:-1, 1:] + region[:-1, :-1]
    return (blocks == 4).sum() + (blocks == 3).sum() / 2


def obvious_counts(predicted: np.ndarray, true: np.ndarray, min_area_ratio: float) -> tuple:
    mine = obvious_regions(predicted, min_area_ratio * CHALLENGE_SIZE**2)
    theirs = obvious_regions(true, TRUE_AREA)
    hits = [[(a & b).sum() / (a | b).sum() > 0.1 for b in theirs] for a in mine]
    iou = ((predicted & true).sum() + 1e-4) / ((predicted | true).sum() + 1e-4)
    return len(mine), sum(map(any, hits)), len(theirs), sum(map(any, zip(*hits, strict=True))), iou


def match(predicted, true, ratio=PREDICTED_AREA_RATIO) -> RegionCounts:
    return count_regions(to_grid(predicted > 0), prepare_truth(true > 0), (ratio,))[0]


def counted(predicted, true, ratio=PREDICTED_AREA_RATIO) -> tuple:
    counts = match(predicted, true, ratio)
    return *counts[:4], (counts.intersection + 1e-4) / (counts.union + 1e-4)


def test_regions_by_hand():
    true, predicted = frame((100, 100, 22, 25)), frame((112, 115, 22, 25))  # 100 of 1000 pixels in common
    assert counted(predicted, true) == (1, 0, 1, 0, (100 + 1e-4) / (1000 + 1e-4))  # an IoU of 0.1 is no hit
    assert match(frame((111, 115, 22, 25)), true).hit_true == 1  # 110 of 990
    # A rectangle's contour runs through pixel centres: (11 - 1) x (16 - 1) = 150 is not above 150.
    for box, kept in (((0, 0, 11, 16), 0), ((0, 0, 12, 15), 1), ((500, 400, 12, 112), 1)):
        assert match(frame(), frame(box)).n_true == kept
    for box, kept in (((5, 5, 21, 21), 0), ((5, 5, 21, 22), 1)):
        assert match(frame(box), frame(), 400 / CHALLENGE_SIZE**2).n_predicted == kept
    assert counted(frame(), frame()) == (0, 0, 0, 0, 1.0)
    assert counted(frame(), frame((0, 0, 512, 512)))[:4] == (0, 0, 1, 0)
    small, large = frame((32, 32, 64, 64), size=256), frame((128, 128, 256, 256), size=1024)
    assert counted(small, large) == counted(frame((64, 64, 128, 128)), frame((64, 64, 128, 128)))


@settings(max_examples=40)
@given(SEEDS, st.sampled_from([0.0006, 0.0001, EQUAL_AREA]))
def test_equals_the_obvious_implementation_and_is_symmetric(seed, ratio):
    predicted, true = related_masks(seed)
    found = counted(predicted, true, ratio)
    assert found == obvious_counts(predicted, true, ratio)
    turned = counted(true, predicted, ratio)
    assert ratio != EQUAL_AREA or found == (*turned[2:4], *turned[0:2], turned[4])


def test_statuses_for_pictures():
    true = frame((10, 10, 50, 50), (200, 200, 50, 50), (400, 400, 6, 6))
    predicted = frame((12, 12, 50, 50), (400, 100, 50, 50), (300, 300, 5, 5))
    row, mine, theirs = compare_image(predicted, true, 0)
    assert sorted(region.status for region in mine) == ["false", "hit", "small"]
    assert sorted(region.status for region in theirs) == ["hit", "missed", "small"]
    assert {round(region.iou, 3) for region in mine} == {0.0, round(48**2 / (2 * 50**2 - 48**2), 3)}
    alone, mine, theirs = compare_image(predicted, None, 0)
    assert sorted(region.status for region in mine) == ["small", "unjudged", "unjudged"] and theirs == []
    assert {name for name, value in alone.items() if value == row[name]} == {"n_predicted", "predicted_area", "peak"}


def test_regions_below_a_chosen_area_count_nowhere_but_the_scorer_s_own_stay_pixels():
    truth = prepare_truth(frame((100, 100, 100, 100)))
    mask = frame((100, 100, 100, 100), (300, 300, 20, 20), (400, 400, 8, 8))  # 8 x 8 is below the scorer's own area
    own, chosen = count_regions(mask, truth, (PREDICTED_AREA_RATIO, 0.01))
    assert (own.n_predicted, own.predicted_pixels) == (2, 10_000 + 400 + 64)
    assert (chosen.n_predicted, chosen.predicted_pixels, chosen.union) == (1, 10_000, 10_000)


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_several_areas_at_once_equal_each_alone(seed):
    rng = np.random.default_rng(seed)
    masks = [cv2.GaussianBlur(rng.random((512, 512)), None, 9) > level for level in (0.5, 0.505)]
    mask, truth = masks[0].astype(np.uint8), prepare_truth(masks[1])
    ratios = (0.0006, 0.002, 0.01, 0.05)
    together = count_regions(mask, truth, ratios)
    assert together == [count_regions(mask, truth, (ratio,))[0] for ratio in ratios]
    # What is reported is what the scorer finds in the mask that is submitted.
    submitted = [counted_mask(mask, ratio) for ratio in ratios]
    assert together == [count_regions(one, truth, (PREDICTED_AREA_RATIO,))[0] for one in submitted]


def test_more_true_regions_than_a_byte_can_number():
    true = np.zeros((512, 512), np.uint8)
    for y, x in np.ndindex(18, 18):
        true[28 * y : 28 * y + 20, 28 * x : 28 * x + 20] = 1
    truth = prepare_truth(true)
    assert len(truth.contours) == 324
    [found] = count_regions(true, truth, [PREDICTED_AREA_RATIO])
    assert found.hit_predicted == found.n_predicted == found.hit_true == found.n_true == 324
    last = np.zeros_like(true)
    last[28 * 17 : 28 * 17 + 20, 28 * 17 : 28 * 17 + 20] = 1  # the 324th
    assert count_regions(last, truth, [PREDICTED_AREA_RATIO])[0][:4] == (1, 1, 324, 1)
