"""Imaginary annotators: regions drawn with jitter, misses and disagreement, and votes for the structure score."""

import cv2
import numpy as np

# Visible damage below which a mean annotator still gives 4, 3 and 2; chosen so that the frequencies of `mos`
# are skewed like those of EvalMuse-Structure (most images at 2, then 3, 4, 5, few at 1).
STEPS = (0.085, 0.16, 0.27, 0.62)


def visible_damage(truth: np.ndarray, severity: float) -> float:
    """How much damage meets the eye: the square root of the damaged share of the image, weighted by severity.

    Args:
        truth: [H, W] of 0/1. severity: 0..1.
    """
    return float(np.sqrt(truth.mean()) * (0.55 + 0.45 * severity))


def opinion_score(rng: np.random.Generator, damage: float) -> float:
    """Mean of three votes 1..5, in thirds."""
    if damage == 0:
        votes = rng.choice([5, 4], size=1, p=[0.8, 0.2]).repeat(3)
        if rng.random() < 0.15:
            votes[0] = 9 - votes[0]
    else:
        # Annotators discuss hard cases: a common view with little noise, and now and then one dissenting vote.
        common = 4.5 - np.interp(damage, (0, *STEPS), (0.2, 1, 2, 2.999, 4)) + 0.5
        common = common + rng.normal(0, 0.08)
        votes = np.round(np.clip(common + rng.normal(0, 0.06, 3), 1, 5))
    return float(np.mean(np.clip(votes, 1, 5)))


def annotate(rng: np.random.Generator, truth: np.ndarray, severity: float) -> list:
    """`bbox_info` as in the challenge: three or four annotators, each a list of regions, [] or None.

    Args:
        truth: uint8 [H, W] of 0/1. severity: 0..1, more severe damage is missed less often.
    """
    contours = cv2.findContours(truth, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    contours = [c[:, 0] for c in contours if cv2.contourArea(c) >= 0.0004 * truth.size]
    annotators = []
    for _ in range(int(rng.choice([3, 4], p=[0.7, 0.3]))):
        regions = [_region(rng, contour, truth.shape) for contour in contours
                   if rng.random() > 0.22 - 0.18 * severity]  # fmt: skip
        if rng.random() < 0.025:
            regions.append(_false_region(rng, truth.shape))
        annotators.append(regions or (None if rng.random() < 0.5 else []))
    return annotators


def _region(rng, contour: np.ndarray, shape) -> dict:
    low, high = contour.min(axis=0).astype(float), contour.max(axis=0) + 1.0
    span = high - low
    scale = np.exp(rng.normal(0.04, 0.06, 2))
    shift = rng.normal(0, 0.035, 2) * span
    if rng.random() < 0.5:
        centre = (low + high) / 2 + shift
        return _rectangle(centre - span * scale / 2, centre + span * scale / 2, shape)
    hull = cv2.convexHull(contour.astype(np.int32))[:, 0] if rng.random() < 0.4 else contour
    count = int(rng.integers(5, 13))
    corners = _resample(hull.astype(float), count)
    middle = (low + high) / 2
    points = middle + (corners - middle) * (scale + 0.05) + shift + rng.normal(0, 0.012, corners.shape) * span
    points = np.clip(np.round(points), 0, np.array(shape[::-1]) - 1).astype(int)
    return {"bbox_type": 2, "bbox": points.tolist()}


def _resample(contour: np.ndarray, count: int) -> np.ndarray:
    """`count` corners that keep the shape: a simplification of the contour, filled up evenly."""
    length = cv2.arcLength(contour.astype(np.float32), True)
    for tolerance in (0.01, 0.015, 0.02, 0.03, 0.045, 0.07, 0.1, 0.15):
        simple = cv2.approxPolyDP(contour.astype(np.float32), tolerance * length, True)[:, 0]
        if 5 <= len(simple) <= count:
            return simple.astype(float)
        if len(simple) < 5:
            break
    return contour[np.linspace(0, len(contour), count, endpoint=False).astype(int)]


def _rectangle(low, high, shape) -> dict:
    limit = np.array(shape[::-1]) - 1
    low, high = (np.clip(np.round(corner), 0, limit).astype(int) for corner in (low, high))
    return {"bbox_type": 1, "bbox": [{"x": int(c[0]), "y": int(c[1])} for c in (low, np.maximum(high, low + 1))]}


def _false_region(rng, shape) -> dict:
    size = np.array(shape[::-1]) * rng.uniform(0.08, 0.2, 2)
    centre = np.array(shape[::-1]) * rng.uniform(0.15, 0.85, 2)
    return _rectangle(centre - size / 2, centre + size / 2, shape)
