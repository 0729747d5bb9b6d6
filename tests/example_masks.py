"""Masks and cases that several tests look at."""

from pathlib import Path

import cv2
import numpy as np

from lib.metrics.heatmaps import Heatmaps
from lib.metrics.matching import CHALLENGE_SIZE

GOLDEN = Path(__file__).parent / "golden" / "challenge_metric"


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
