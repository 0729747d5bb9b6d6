"""The challenge metric: official figures, hand-computed cases, and equality with a slow, obvious implementation."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from lib.calibration import Smoothed, best_setting, calibrate
from lib.correlation import logistic_plcc, score_figures
from lib.errors import InputError
from lib.matching import CHALLENGE_SIZE, TRUE_AREA, remove_small
from lib.metrics import (
    Heatmaps,
    best_threshold,
    challenge_figures,
    classify_regions,
    evaluate,
    match_regions,
    score_table,
    sweep,
    threshold_curve,
)

GOLDEN = Path(__file__).parent / "golden" / "challenge_metric"
EQUAL_AREA = TRUE_AREA / CHALLENGE_SIZE**2  # makes both sides of a match keep the same regions
SEEDS = st.integers(0, 2**32 - 1)


def frame(*boxes, size=CHALLENGE_SIZE, value=1) -> np.ndarray:
    """A mask with rectangles given as x, y, width, height."""
    mask = np.zeros((size, size), np.uint8)
    for x, y, width, height in boxes:
        mask[y : y + height, x : x + width] = value
    return mask


def golden() -> tuple[Heatmaps, Heatmaps]:
    cases = np.load(GOLDEN / "cases.npz")
    ids = cases["names"].tolist()
    heatmaps = {id: cases[f"heat_{number:04d}"] for number, id in enumerate(ids)}
    masks = np.unpackbits(cases["gt"], axis=-1)
    labels = Heatmaps(dict(zip(ids, masks, strict=True)), dict(zip(ids, cases["gt_scores"], strict=True)))
    return Heatmaps(heatmaps, dict(zip(ids, cases["pred_scores"], strict=True))), labels


def random_mask(rng: np.random.Generator) -> np.ndarray:
    """Rectangles, rings, islands, diagonal touches, specks and the frame's border, or nothing at all."""
    mask = np.zeros((CHALLENGE_SIZE, CHALLENGE_SIZE), np.uint8)
    for _ in range(rng.integers(0, 12)):
        x, y = rng.integers(-20, CHALLENGE_SIZE, 2).tolist()
        w, h = rng.integers(1, 160, 2).tolist()
        kind = rng.integers(4)
        if kind == 0:
            cv2.rectangle(mask, (x, y), (x + w, y + h), 1, -1)
        elif kind == 1:
            angle, thickness = float(rng.integers(180)), int(rng.choice([-1, 1, 6]))
            cv2.ellipse(mask, (x, y), (w // 2, h // 2), angle, 0, 360, 1, thickness)
        elif kind == 2:
            cv2.rectangle(mask, (x, y), (x + w, y + h), 0, -1)
        else:
            cv2.line(mask, (x, y), (x + w, y + h), 1, int(rng.integers(1, 30)))
    if rng.random() < 0.3:
        coarse = (rng.random((24, 24)) < rng.choice([0.03, 0.4])).astype(np.uint8)
        mask |= cv2.resize(coarse, (CHALLENGE_SIZE, CHALLENGE_SIZE), interpolation=cv2.INTER_NEAREST)
    return mask


def related_masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask, other = random_mask(rng), random_mask(rng)
    if rng.random() < 0.5:
        shift = rng.integers(-30, 31, 2)
        other = np.roll(mask, shift, (0, 1)) | (other & (rng.random() < 0.5))
    return mask, other.astype(np.uint8)


def obvious_regions(mask: np.ndarray, min_area: float) -> list[np.ndarray]:
    """Connected parts with their holes filled, without those inside another, by their outline's area."""
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    filled = [fill_holes(parts == number) for number in range(1, count + 1)]
    largest_first = sorted(filled, key=np.sum, reverse=True)
    covered, outer = np.zeros(mask.shape, bool), []
    for one in largest_first:
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
    blocks = sum(region[y : y + 511, x : x + 511].astype(int) for x in (0, 1) for y in (0, 1))
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


@pytest.mark.parametrize(("name", "min_area_ratio"), [("official", 0.0006), ("reference_online", 0.0001)])
def test_golden_figures(name, min_area_ratio):
    expected = {key: value for key, value in json.loads((GOLDEN / "expected.json").read_text()).items() if name in key}
    predictions, labels = golden()
    thresholds = [int(key.split("@")[1]) for key in expected]
    counts = sweep(predictions, labels, thresholds, min_area_ratio=min_area_ratio)
    curve = threshold_curve(counts, score_table(predictions, labels)).set_index("threshold")
    assert len(expected) == 4
    for threshold, figures in zip(thresholds, expected.values(), strict=True):
        for figure, value in figures.items():
            assert curve.at[threshold, figure] == pytest.approx(value, abs=1e-9), (threshold, figure)


def test_evaluate_is_the_curve_at_one_threshold():
    predictions, labels = golden()
    result = evaluate(predictions, labels, 90)
    assert result["threshold"] == 90 and result["n_images"] == 24 and result["notes"] == []
    assert result["final_score"] == pytest.approx(0.7401578040895389, abs=1e-9)


def test_processes_give_what_one_process_gives():
    predictions, labels = golden()
    thresholds, seen = [20, 90], []
    alone = sweep(predictions, labels, thresholds, workers=1)
    together = sweep(Smoothed(predictions, 0), labels, thresholds, workers=2, progress=lambda *done: seen.append(done))
    pd.testing.assert_frame_equal(alone, together)
    assert seen[-1] == (24, 24)


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


def test_a_full_frame_hits_a_label_of_12_percent():
    assert counted(frame((0, 0, 512, 512)), frame((50, 50, 180, 176)))[:4] == (1, 1, 1, 1)


def test_other_sizes_are_resized_on_both_sides():
    small, large = frame((32, 32, 64, 64), size=256), frame((128, 128, 256, 256), size=1024)
    assert counted(small, large) == counted(frame((64, 64, 128, 128)), frame((64, 64, 128, 128)))


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_equals_the_obvious_implementation(seed):
    predicted, true = related_masks(seed)
    assert counted(predicted, true) == obvious_counts(predicted, true, 0.0006)


@pytest.mark.slow
def test_equals_the_obvious_implementation_on_thousands():
    for seed in range(4000):
        predicted, true = related_masks(seed)
        assert counted(predicted, true, 0.0001) == obvious_counts(predicted, true, 0.0001), seed


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_matching_is_symmetric(seed):
    mask, other = related_masks(seed)
    one, two = counted(mask, other, EQUAL_AREA), counted(other, mask, EQUAL_AREA)
    assert one == (*two[2:4], *two[0:2], two[4])


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_hits_fall_as_the_matching_threshold_rises(seed):
    mask, other = related_masks(seed)
    counts = [match_regions(mask, other, hit_iou=level) for level in (0, 0.1, 0.3, 0.5, 0.9)]
    for side in ("hit_true", "hit_predicted"):
        hits = [getattr(one, side) for one in counts]
        assert hits == sorted(hits, reverse=True)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from([96, 192, 512, 600]))
def test_sweep_equals_matching_each_threshold_alone(seed, size):
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.random((size, size), dtype=np.float32), None, size / 24)
    scaled = (smooth - smooth.min()) / np.ptp(smooth) * 255
    heatmap = (scaled // rng.integers(1, 60) * rng.integers(1, 9)).clip(0, 255).astype(np.uint8)  # few or many levels
    label = random_mask(rng)
    counts = sweep(Heatmaps({"a": heatmap}), Heatmaps({"a": label}), range(0, 256, 5))
    for row in counts.itertuples():
        alone = match_regions(heatmap > row.threshold, label)
        assert (row.n_predicted, row.hit_predicted, row.n_true, row.hit_true, row.iou) == (
            alone.n_predicted, alone.hit_predicted, alone.n_true, alone.hit_true, alone.iou)  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_ids_does_not_matter(random):
    predictions, labels = golden()
    ids = list(labels.ids)
    random.shuffle(ids)
    shuffled, straight = (evaluate(predictions, labels, 60, order) for order in (ids, labels.ids))
    assert shuffled == pytest.approx(straight, abs=1e-9)


def test_label_threshold_asks_for_more_annotators():
    labels = Heatmaps({"a": frame((50, 50, 60, 60), value=64) + frame((300, 300, 60, 60), value=127)})
    predictions = Heatmaps({"a": labels.heatmap("a")})
    assert sweep(predictions, labels, [0])["n_true"].tolist() == [2]
    assert sweep(predictions, labels, [0], label_threshold=64)["n_true"].tolist() == [1]


def test_statuses_for_pictures():
    true = frame((10, 10, 50, 50), (200, 200, 50, 50), (400, 400, 6, 6))
    predicted = frame((12, 12, 50, 50), (400, 100, 50, 50), (300, 300, 5, 5))
    mine, theirs = classify_regions(predicted, true)
    assert sorted(region.status for region in mine) == ["false", "hit", "small"]
    assert sorted(region.status for region in theirs) == ["hit", "missed", "small"]
    assert {round(region.iou, 3) for region in mine} == {0.0, round(48**2 / (2 * 50**2 - 48**2), 3)}


def curve_of(counts: dict, scores=((0.1, 0.2), (0.5, 0.4), (0.9, 0.8))) -> dict:
    columns = {"predicted_pixels": 0, "intersection": 0, "union": 1, "iou": 0.0, **counts}
    return challenge_figures(pd.DataFrame([columns] * 3), pd.DataFrame(scores, columns=["predicted", "true"]))


def test_figures_by_hand():
    figures = curve_of({"n_predicted": 4, "hit_predicted": 2, "n_true": 5, "hit_true": 2})
    assert figures["precision"] == 0.5 and figures["recall"] == pytest.approx(0.4)
    assert figures["f1_score"] == pytest.approx(4 / 9, abs=1e-9)
    assert figures["srcc"] == figures["krcc"] == pytest.approx(1)
    assert figures["rmse_mos"] == pytest.approx(0.4)  # every score is off by 0.1, and a MOS has four times the range
    assert figures["final_score"] == pytest.approx(0.7 * 4 / 9 + 0.15 * (figures["plcc"] + 1), abs=1e-9)
    assert any("four images" in note for note in figures["notes"])  # three images cannot bear four parameters


def test_nothing_predicted_is_zero_and_said():
    figures = curve_of({"n_predicted": 0, "hit_predicted": 0, "n_true": 5, "hit_true": 0})
    assert figures["precision"] == figures["f1_score"] == 0
    assert any("no region is predicted" in note for note in figures["notes"])


def test_no_true_region_leaves_recall_undefined_and_said():
    figures = curve_of({"n_predicted": 2, "hit_predicted": 0, "n_true": 0, "hit_true": 0})
    assert np.isnan(figures["recall"]) and np.isnan(figures["f1_score"]) and np.isfinite(figures["final_score"])
    assert any("no label has a region" in note for note in figures["notes"])


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (((0.5, 0.2), (0.5, 0.4), (0.5, 0.8)), "every predicted score is 0.5"),
        (((0.1, 1.0), (0.5, 1.0), (0.9, 1.0)), "every true score is 1"),
        (((0.1, 0.2), (np.nan, 0.4), (0.9, 0.8)), "1 predicted scores are not finite"),
        (((0.1, 0.2), (0.3, np.nan), (0.9, np.nan)), "only 1 images have a true score"),
    ],
)
def test_undefined_correlations_are_nan_count_as_zero_and_are_said(scores, said):
    figures = curve_of({"n_predicted": 4, "hit_predicted": 4, "n_true": 5, "hit_true": 5}, scores)
    assert np.isnan(figures["plcc"]) and np.isnan(figures["srcc"])
    assert figures["final_score"] == pytest.approx(0.7, abs=1e-9)
    assert any(said in note for note in figures["notes"])


def test_an_image_without_a_true_score_leaves_the_others():
    figures, notes = score_figures([0.1, 0.9, 0.5, 0.4], [0.0, 0.8, np.nan, 0.5])
    assert figures["srcc"] == pytest.approx(1) and "1 images have no true score" in notes[0]


def test_correlations_equal_scipy_with_ties():
    rng = np.random.default_rng(1)
    true = rng.integers(0, 5, 200) / 4
    predicted = np.round(true + rng.normal(0, 0.3, 200), 1)
    figures, _ = score_figures(predicted, true)
    assert figures["srcc"] == pytest.approx(stats.spearmanr(predicted, true).statistic, abs=1e-12)
    assert figures["krcc"] == pytest.approx(stats.kendalltau(predicted, true).statistic, abs=1e-12)


def test_logistic_fit_straightens_a_curve_and_falls_back_aloud():
    predicted = np.linspace(0, 1, 50)
    true = 1 / (1 + np.exp(-(predicted - 0.5) / 0.05))
    plain = np.corrcoef(predicted, true)[0, 1]
    plcc, note = logistic_plcc(predicted, true)
    assert plain < 0.95 < 0.9999 < plcc and note == ""
    bounded, note = logistic_plcc(predicted, true, max_evaluations=1)
    assert bounded == pytest.approx(plain) and "did not converge" in note


def test_best_threshold_ignores_undefined_and_takes_the_lowest_of_equals():
    curve = pd.DataFrame({"threshold": [10, 20, 30, 40], "final_score": [np.nan, 0.3, 0.5, 0.5], "recall": np.nan})
    assert best_threshold(curve) == 30
    with pytest.raises(InputError, match="recall"):
        best_threshold(curve, by="recall")


@pytest.mark.parametrize(
    ("predicted", "ids", "message"),
    [
        (["a"], None, "not predicted.*b"),
        (["a", "b", "c"], None, "not in the labels.*c"),
        (["a"], ["z"], "without a label.*z"),
    ],
)
def test_ids_must_fit(predicted, ids, message):
    labels = Heatmaps({"a": frame(), "b": frame()})
    with pytest.raises(InputError, match=message):
        sweep(Heatmaps({id: frame() for id in predicted}), labels, [10], ids)


@pytest.mark.parametrize("thresholds", [[], [256], [-1], [0.5]])
def test_thresholds_are_checked(thresholds):
    with pytest.raises(InputError, match="whole numbers from 0 to 255"):
        sweep(Heatmaps({"a": frame()}), Heatmaps({"a": frame()}), thresholds)


def test_heatmaps_with_channels_are_refused_by_id():
    with pytest.raises(InputError, match="heatmap of a .*512, 512, 3"):
        sweep(Heatmaps({"a": np.zeros((512, 512, 3), np.uint8)}), Heatmaps({"a": frame()}), [1])


def test_calibration_finds_what_was_hidden():
    # Signal at 200 on a ground of specks at 100 and small false blobs at 255.
    label = frame((50, 50, 100, 100), (300, 300, 120, 90))
    heatmap = label * np.uint8(200) + frame((10, 400, 20, 20), (450, 20, 20, 20), value=255)
    heatmap[::4, ::4] = np.maximum(heatmap[::4, ::4], 100)
    predictions, labels = Heatmaps({"a": heatmap}, {"a": 0.5}), Heatmaps({"a": label}, {"a": 0.5})
    curves = calibrate(predictions, labels, [50, 150, 220], [0.0006, 0.01], [0, 2])
    assert len(curves) == 12
    best = best_setting(curves, "f1_score")
    assert (best["threshold"], best["min_area_ratio"]) == (50, 0.01) or best["f1_score"] == pytest.approx(1, abs=1e-9)
    assert curves.query("threshold == 150 and min_area_ratio == 0.0006 and smoothing == 0")["precision"].item() == 0.5
    with pytest.raises(InputError, match="no effect"):
        calibrate(predictions, labels, [50], [0.0001])


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_removing_small_regions_equals_not_counting_them(seed):
    mask, other = related_masks(seed)
    cleaned = remove_small(mask, 0.01)
    assert counted(cleaned, other)[:4] == counted(mask, other, 0.01)[:4]
    assert (cleaned <= mask).all()
