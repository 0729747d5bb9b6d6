"""Augmentations of the recipe; image and heatmap move together. All randomness comes from the generator given.

Probabilities are parameters; the ranges are the reference's: crop to 80..100 % of each side, brightness 0.05,
contrast and saturation 0.8..1, hue 0.025, JPEG quality 70..100.
"""

import cv2
import numpy as np


def augment(image, heatmap, rng: np.random.Generator, hflip=0.5, random_crop=0.5, colour_jitter=0.1, grey=0.1):
    """uint8 RGB [H, W, 3] and uint8 [H, W] -> the same, possibly smaller by a crop."""
    if rng.random() < random_crop:
        image, heatmap = crop(image, heatmap, rng)
    if rng.random() < colour_jitter:
        image = compress(jitter(image, rng), int(rng.integers(70, 101)))
    if rng.random() < grey:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < hflip:
        image, heatmap = image[:, ::-1], heatmap[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(heatmap)


def crop(image, heatmap, rng: np.random.Generator, smallest: float = 0.8):
    """Cut a random window of 80..100 % of each side, drawn independently for height and width."""
    height, width = heatmap.shape
    h, w = (max(1, round(side * rng.uniform(smallest, 1))) for side in (height, width))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    window = np.s_[top : top + h, left : left + w]
    return image[window], heatmap[window]


def jitter(image, rng: np.random.Generator):
    """Brightness, contrast and saturation factors, and a shift of hue, in that order."""
    values = image.astype(np.float32) / 255 * np.float32(rng.uniform(0.95, 1.05))
    mean = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY).mean()
    values = mean + (values - mean) * np.float32(rng.uniform(0.8, 1))
    grey = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)[..., None]  # scaling S of HSV would brighten as well
    values = grey + (values - grey) * np.float32(rng.uniform(0.8, 1))
    hsv = cv2.cvtColor(np.clip(values, 0, 1), cv2.COLOR_RGB2HSV)  # hue in degrees for float images
    hsv[..., 0] = (hsv[..., 0] + np.float32(rng.uniform(-0.025, 0.025) * 360)) % 360
    return np.round(np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0, 1) * 255).astype(np.uint8)


def compress(image, quality: int):
    """JPEG artefacts at the given quality (1..100)."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
