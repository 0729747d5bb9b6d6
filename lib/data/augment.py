"""From an image and its label to the network's sizes, augmented as the recipe says.

Image and label move together. All randomness comes from the generator given. Probabilities are parameters; the ranges
are the reference's: crop to 80..100 % of each side, brightness 0.05, contrast and saturation 0.8..1, hue 0.025, JPEG
quality 70..100.
"""

import cv2
import numpy as np

from lib.config import Experiment
from lib.data.pixels import resize, resize_image


def fit(image: np.ndarray, heatmap: np.ndarray, config: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """uint8 RGB [H, W, 3] and uint8 [H, W] -> the same at `input_shape` and at `mask_shape`."""
    return resize_image(image, *config.input_shape, config.resampling), resize(heatmap, *config.mask_shape)


def augment(image, heatmap, rng: np.random.Generator, config: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """As `fit`, with crop, colours and JPEG, grey and mirroring, each with its probability.

    Colours and JPEG change the image at its own size, or with `augment_after_resize` at the network's.
    """
    if rng.random() < config.random_crop:
        image, heatmap = crop(image, heatmap, rng)
    coloured, after = rng.random() < config.colour_jitter, config.augment_after_resize
    if coloured and not after:
        image = compress(jitter(image, rng), int(rng.integers(70, 101)))
    image, heatmap = fit(image, heatmap, config)
    if coloured and after:
        image = compress(jitter(image, rng, shuffled=True), int(rng.integers(70, 101)))
    if rng.random() < config.grey:
        image = _grey(image)
    if rng.random() < config.hflip:
        image, heatmap = cv2.flip(image, 1), cv2.flip(heatmap, 1)
    return image, heatmap


def crop(image, heatmap, rng: np.random.Generator, smallest: float = 0.8):
    """Cut a random window of 80..100 % of each side, drawn independently for height and width."""
    height, width = heatmap.shape
    h, w = (max(1, round(side * rng.uniform(smallest, 1))) for side in (height, width))
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    window = np.s_[top : top + h, left : left + w]
    return image[window], heatmap[window]


def jitter(image: np.ndarray, rng: np.random.Generator, shuffled: bool = False) -> np.ndarray:
    """Brightness, contrast, saturation and hue, each in 8 bits as Pillow does; in this order unless `shuffled`."""
    brightness, contrast, saturation, hue = rng.uniform((0.95, 0.8, 0.8, -0.025), (1.05, 1, 1, 0.025))
    steps = (
        lambda x: _scale(x, brightness, 0),
        lambda x: _scale(x, contrast, cv2.mean(_grey(x))[0]),
        lambda x: cv2.addWeighted(x, saturation, _grey(x), 1 - saturation, 0),
        lambda x: _shift_hue(x, round(hue * 256)),
    )
    for number in rng.permutation(4) if shuffled else range(4):
        image = steps[number](image)
    return image


def compress(image, quality: int):
    """JPEG artefacts at the given quality (1..100)."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _scale(image: np.ndarray, factor: float, pivot: float) -> np.ndarray:
    """Move every value away from `pivot` (or towards it) by a factor."""
    values = pivot + factor * (np.arange(256) - pivot)
    return cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _shift_hue(image: np.ndarray, steps: int) -> np.ndarray:
    """Turn the hue by so many 256ths of the circle."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(steps % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
