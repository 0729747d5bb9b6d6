"""Augmentations: image and heatmap move together, ranges of the recipe, repeatable by the generator."""

from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.config import Experiment
from lib.data.augment import augment, crop, fit, jitter
from lib.data.pixels import to_pixels

GOLDEN = Path(__file__).parent / "golden" / "preprocess.npz"
OFF = {"hflip": 0.0, "random_crop": 0.0, "colour_jitter": 0.0, "grey": 0.0}


def recipe(height=48, width=64, **changes) -> Experiment:
    """A network of this size, so that an image of the same size is not resized."""
    sizes = {"input_size": height, "input_width": width, "mask_size": height}
    return Experiment.from_dict(sizes | OFF | changes)


def marked(height=50, width=70):
    """An image whose red channel is its own heatmap: whatever happens to one must happen to the other."""
    rng = np.random.default_rng(1)
    heatmap = rng.integers(0, 256, (height, width), dtype=np.uint8)
    image = np.stack([heatmap, heatmap // 2, 255 - heatmap], axis=2)
    return image, heatmap


def smooth(height=48, width=64):
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = np.stack([x / width, y / height, 0.5 + 0 * x], axis=2) * 200 + 20
    return image.astype(np.uint8)


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_image_and_heatmap_move_together(seed, height, width, after):
    """Whatever crop, size and mirroring: the heatmap, drawn into the image, is what comes out beside it."""
    image, heatmap = smooth(height, width), smooth(height, width)[..., 0]
    config = recipe(24, 32, hflip=0.5, random_crop=0.8, augment_after_resize=after)
    a, b = augment(image, heatmap, np.random.default_rng(seed), config)
    assert a.shape == (24, 32, 3) and b.shape == (24, 32)
    assert np.abs(a[..., 0].astype(int) - b).max() <= 200 / min(width, 24)  # cubic against linear where it grows


def test_blocks_of_jpeg_reach_the_network_only_after_the_resize():
    """At quality 70 an image of noise keeps 8x8 blocks of its own size; compressed before, they are averaged away."""
    image = np.random.default_rng(0).integers(0, 256, (192, 256, 3), dtype=np.uint8)
    heatmap, lost = np.zeros((192, 256), np.uint8), {}
    plain = fit(image, heatmap, recipe())[0].astype(int)
    for after in (False, True):
        config = recipe(colour_jitter=1.0, augment_after_resize=after)
        parts = [augment(image, heatmap, np.random.default_rng(seed), config)[0] for seed in range(8)]
        lost[after] = np.mean([np.abs(part - part.mean() - plain + plain.mean()).mean() for part in parts])
    assert lost[True] > 1.5 * lost[False]


def test_the_order_of_the_jitters_is_shuffled_as_in_the_reference():
    image = np.repeat(np.random.default_rng(0).integers(0, 2, (8, 8, 1), np.uint8) * 255, 3, axis=2)
    image[:4, :4] = (250, 20, 20)
    for shuffled in (False, True):
        found = set()
        for seed in range(30):  # with the same factors, only the order can differ
            rng = Mock(uniform=lambda low, high: np.array([1.05, 0.8, 0.8, 0.025]))
            rng.permutation = np.random.default_rng(seed).permutation
            found.add(jitter(image, rng, shuffled).tobytes())
        assert len(found) > 4 if shuffled else len(found) == 1


def test_crops_keep_80_to_100_percent_of_each_side():
    image, heatmap = marked(100, 200)
    rng = np.random.default_rng(0)
    crops = [crop(image, heatmap, rng) for _ in range(400)]
    heights, widths = np.array([b.shape for _, b in crops]).T
    assert heights.min() >= 80 and heights.max() <= 100 and widths.min() >= 160 and widths.max() <= 200
    assert np.ptp(heights) >= 19 and np.ptp(widths) >= 38  # the whole range is used
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.2  # and each side is drawn by itself
    places = {(int(a[0, 0, 0]), int(a[0, 0, 2])) for a, _ in crops}
    assert len(places) > 100


def test_jitter_stays_in_its_ranges():
    image = smooth()
    brightness, contrast, chroma, hue = [], [], [], []
    original = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    colourful = np.ptp(image, axis=2) > 60
    for seed in range(200):
        changed = jitter(image, np.random.default_rng(seed))
        assert changed.dtype == np.uint8 and changed.shape == image.shape
        luma, before = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).astype(float) for x in (changed, image))
        brightness.append(luma.mean() / before.mean())
        contrast.append(luma.std() / before.std())
        chroma.append(np.median(np.ptp(changed, axis=2)[colourful] / np.ptp(image, axis=2)[colourful]))
        hsv = cv2.cvtColor(changed.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
        hue.append(np.median(((hsv[..., 0] - original[..., 0] + 180) % 360 - 180)[colourful]))
    assert 0.93 < min(brightness) < 0.96 and 1.04 < max(brightness) < 1.07
    assert 0.74 < min(contrast) < 0.83 and 0.99 < max(contrast) < 1.08  # contrast 0.8..1 after brightness
    assert 0.6 < min(chroma) < 0.72 and 0.97 < max(chroma) < 1.06  # saturation 0.8..1 on top of it
    assert -10 < min(hue) < -7 and 7 < max(hue) < 10  # 0.025 of 360 degrees, in steps of 1.4


@pytest.mark.parametrize("name", OFF)
def test_probabilities_and_that_the_generator_decides_everything(name):
    image, heatmap = smooth(), marked(48, 64)[1]
    before, changed = (image.copy(), heatmap.copy()), 0
    for seed in range(300):
        first, second = (augment(image, heatmap, np.random.default_rng(seed), recipe(**{name: 0.3})) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        changed += not np.array_equal(first[0], image)
    assert 60 < changed < 120  # 0.3 of 300, four standard deviations
    assert np.array_equal(image, before[0]) and np.array_equal(heatmap, before[1])


@pytest.mark.parametrize("name, size", [("wide", 64), ("wide", 160), ("tall", 64), ("tall", 160)])
def test_lanczos_is_the_reference_s_within_a_grey_level(name, size):
    """Figures of the reference's own preprocessing (mightycatty/AIGC_imagery_distortion_detection)."""
    with np.load(GOLDEN) as golden:
        image = golden[f"{name}.image"]
        image.flags.writeable = False  # as Pillow gives it
        pixels = to_pixels(image, (size, size), "lanczos").permute(1, 2, 0).numpy().astype(int)
        difference = np.abs(pixels - golden[f"{name}.lanczos{size}"])
        assert difference.max() <= 1 and difference.mean() < 0.01  # torch's weights are rounded otherwise
        area = to_pixels(image, (size, size), "area").permute(1, 2, 0).numpy()
        assert 0 < np.abs(area - pixels).mean() < 12
