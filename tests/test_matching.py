"""Regions and their matching: hand-computed cases, and equality with a slow, obvious implementation."""

import cv2
import numpy as np
import pytest
from example_masks import frame, related_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lib.metrics.matching import (
    CHALLENGE_SIZE,
    PREDICTED_AREA_RATIO,
    TRUE_AREA,
    classify_regions,
    count_at_areas,
    count_regions,
    counted_mask,
    match_regions,
    prepare_truth,
)

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


def counted(predicted, true, min_area_ratio=0.0006) -> tuple:
    counts = match_regions(predicted, true, min_area_ratio)
    return counts.n_predicted, counts.hit_predicted, counts.n_true, counts.hit_true, counts.iou


def test_iou_of_exactly_a_tenth_is_no_hit():
    true, predicted = frame((100, 100, 22, 25)), frame((112, 115, 22, 25))  # 100 of 1000 pixels in common
    assert counted(predicted, true) == (1, 0, 1, 0, (100 + 1e-4) / (1000 + 1e-4))
    assert match_regions(frame((111, 115, 22, 25)), true).hit_true == 1  # 110 of 990


@pytest.mark.parametrize(("box", "kept"), [((0, 0, 11, 16), 0), ((0, 0, 12, 15), 1), ((500, 400, 12, 112), 1)])
def test_true_regions_need_a_contour_area_above_150(box, kept):
    # A rectangle's contour runs through pixel centres: (11 - 1) x (16 - 1) = 150 is not above 150.
    assert match_regions(frame(), frame(box)).n_true == kept


def test_predicted_regions_need_more_than_the_ratio():
    ratio = 400 / CHALLENGE_SIZE**2
    assert match_regions(frame((5, 5, 21, 21)), frame(), ratio).n_predicted == 0
    assert match_regions(frame((5, 5, 21, 22)), frame(), ratio).n_predicted == 1


def test_holes_are_filled_and_islands_in_them_belong_to_the_ring():
    ring = frame((100, 100, 200, 200)) - frame((120, 120, 160, 160)) + frame((180, 180, 40, 40))
    counts = match_regions(ring, frame((100, 100, 200, 200)))
    assert (counts.n_predicted, counts.hit_predicted, counts.hit_true) == (1, 1, 1)
    assert counts.predicted_pixels == 200**2 - 160**2 + 40**2


def test_empty_masks():
    assert counted(frame(), frame()) == (0, 0, 0, 0, 1.0)
    assert counted(frame(), frame((0, 0, 512, 512)))[:4] == (0, 0, 1, 0)


def test_other_sizes_are_resized_on_both_sides():
    small, large = frame((32, 32, 64, 64), size=256), frame((128, 128, 256, 256), size=1024)
    assert counted(small, large) == counted(frame((64, 64, 128, 128)), frame((64, 64, 128, 128)))


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_equals_the_obvious_implementation(seed):
    predicted, true = related_masks(seed)
    assert counted(predicted, true) == obvious_counts(predicted, true, 0.0006)


@pytest.mark.slow
def test_equals_the_obvious_implementation_on_thousands():
    for seed in range(4000):
        predicted, true = related_masks(seed)
        assert counted(predicted, true, 0.0001) == obvious_counts(predicted, true, 0.0001), seed


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_matching_is_symmetric(seed):
    mask, other = related_masks(seed)
    one, two = counted(mask, other, EQUAL_AREA), counted(other, mask, EQUAL_AREA)
    assert one == (*two[2:4], *two[0:2], two[4])


def test_statuses_for_pictures():
    true = frame((10, 10, 50, 50), (200, 200, 50, 50), (400, 400, 6, 6))
    predicted = frame((12, 12, 50, 50), (400, 100, 50, 50), (300, 300, 5, 5))
    mine, theirs = classify_regions(predicted, true)
    assert sorted(region.status for region in mine) == ["false", "hit", "small"]
    assert sorted(region.status for region in theirs) == ["hit", "missed", "small"]
    assert {round(region.iou, 3) for region in mine} == {0.0, round(48**2 / (2 * 50**2 - 48**2), 3)}


def test_regions_below_a_chosen_area_count_nowhere_but_the_scorer_s_own_stay_pixels():
    truth = prepare_truth(frame((100, 100, 100, 100)))
    mask = frame((100, 100, 100, 100), (300, 300, 20, 20), (400, 400, 8, 8))  # 8 x 8 is below the scorer's own area
    own, chosen = count_at_areas(mask, truth, (PREDICTED_AREA_RATIO, 0.01))
    assert (own.n_predicted, own.predicted_pixels) == (2, 10_000 + 400 + 64)
    assert (chosen.n_predicted, chosen.predicted_pixels, chosen.union) == (1, 10_000, 10_000)
    assert own == count_regions(mask, truth, PREDICTED_AREA_RATIO)
    assert chosen == count_regions(counted_mask(mask, 0.01), truth, PREDICTED_AREA_RATIO)
    assert counted_mask(mask, PREDICTED_AREA_RATIO) is mask


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_several_areas_at_once_equal_each_alone(seed):
    rng = np.random.default_rng(seed)
    masks = [cv2.GaussianBlur(rng.random((512, 512)), None, 9) > level for level in (0.5, 0.505)]
    mask, truth = masks[0].astype(np.uint8), prepare_truth(masks[1])
    ratios = (0.0006, 0.002, 0.01, 0.05)
    assert count_at_areas(mask, truth, ratios) == [count_regions(mask, truth, ratio) for ratio in ratios]
    # What is reported is what the scorer finds in the mask that is submitted.
    submitted = [count_regions(counted_mask(mask, ratio), truth, PREDICTED_AREA_RATIO) for ratio in ratios]
    assert submitted == count_at_areas(mask, truth, ratios)
