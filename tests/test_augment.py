"""Augmentations: image and heatmap move together, ranges of the recipe, repeatable by the generator."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data.augment import augment, compress, crop, jitter

OFF = {"hflip": 0.0, "random_crop": 0.0, "colour_jitter": 0.0, "grey": 0.0}


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


def test_nothing_is_the_identity():
    image, heatmap = marked()
    a, b = augment(image, heatmap, np.random.default_rng(0), **OFF)
    assert np.array_equal(a, image) and np.array_equal(b, heatmap)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40))
def test_crop_and_flip_move_image_and_heatmap_together(seed, height, width):
    image, heatmap = marked(height, width)
    a, b = augment(image, heatmap, np.random.default_rng(seed), **OFF | {"hflip": 0.5, "random_crop": 0.8})
    assert a.shape[:2] == b.shape and np.array_equal(a[..., 0], b)
    assert a.flags["C_CONTIGUOUS"] and b.flags["C_CONTIGUOUS"]


def test_colours_leave_the_heatmap_alone():
    image, heatmap = smooth(), marked(48, 64)[1]
    a, b = augment(image, heatmap, np.random.default_rng(0), **OFF | {"colour_jitter": 1.0, "grey": 1.0})
    assert np.array_equal(b, heatmap) and not np.array_equal(a, image)
    assert np.array_equal(a[..., 0], a[..., 1]) and np.array_equal(a[..., 0], a[..., 2])


@pytest.mark.parametrize("name", OFF)
def test_probabilities(name):
    image, heatmap = smooth(), marked(48, 64)[1]
    changed = 0
    for seed in range(300):
        a, _ = augment(image, heatmap, np.random.default_rng(seed), **OFF | {name: 0.3})
        changed += a.shape != image.shape or not np.array_equal(a, image)
    assert 60 < changed < 120  # 0.3 of 300, four standard deviations


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


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (3, 1)])
def test_tiny_images_survive_every_augmentation(size):
    image, heatmap = marked(*size)
    for seed in range(10):
        a, b = augment(image, heatmap, np.random.default_rng(seed), 1, 1, 1, 1)
        assert a.shape[:2] == b.shape and a.size > 0


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
    assert -10 < min(hue) < -8 and 8 < max(hue) < 10  # 0.025 of 360 degrees


def test_jitter_of_grey_stays_grey():
    image = np.repeat(smooth()[..., :1], 3, axis=2)
    changed = jitter(image, np.random.default_rng(0)).astype(int)
    assert np.ptp(changed, axis=2).max() <= 1


def test_compression_loses_more_at_lower_quality():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    lost = [np.abs(compress(image, quality).astype(int) - image).mean() for quality in (100, 85, 70)]
    assert 0 < lost[0] < lost[1] < lost[2]
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    assert compress(red, 95)[8, 8, 0] > 190 and compress(red, 95)[8, 8, 2] < 10  # RGB stays RGB


def test_the_generator_decides_everything():
    image, heatmap = marked()
    runs = [augment(image, heatmap, np.random.default_rng((1, 2, seed)), 0.5, 0.5, 0.5, 0.5) for seed in (3, 3, 4)]
    assert all(np.array_equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert any(a.shape != b.shape or not np.array_equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_inputs_are_not_changed():
    image, heatmap = marked()
    before = image.copy(), heatmap.copy()
    for seed in range(5):
        augment(image, heatmap, np.random.default_rng(seed), 1, 1, 1, 1)
    assert np.array_equal(image, before[0]) and np.array_equal(heatmap, before[1])
