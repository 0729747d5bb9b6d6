"""Inputs that are not square: height and width keep their places from image to store."""

import cv2
import numpy as np
import pytest
import torch
from example_masks import frame
from example_runs import write_split

from lib.data.dataset import DistortionData
from lib.data.pixels import resize
from lib.data.splits import Source
from lib.model.detector import DistortionDetector
from lib.predict.prediction import predict
from lib.stores import LabelStore

WIDE = {"input_size": 32, "input_width": 64, "mask_size": 16}


@pytest.fixture
def make(experiment):
    return lambda **changes: DistortionDetector.from_checkpoint(experiment(**WIDE | changes)).eval()


def test_a_label_keeps_its_place(tmp_path, experiment):
    """A region in the lower left quarter stays there when the image is stretched to twice its width."""
    write_split(tmp_path / "train", {"low": ([(0, 256, 256, 256)], [])})
    store = LabelStore(tmp_path / "train")
    item = DistortionData(experiment(**WIDE), [Source(store, store.ids)], train=False)[0, 0, 1]
    expected = np.zeros((16, 32), np.uint8)
    expected[8:, :16] = 64
    np.testing.assert_array_equal(item["heatmap"], expected)


@pytest.mark.parametrize("size", [(32, 64), (64, 32)])
def test_a_stored_heatmap_lies_where_the_image_is_bright(make, tmp_path, size):
    """From file to store through every resize; the bright part is at the left and low, on a tall image."""
    folder = write_split(tmp_path / "test", {"tall": ([], [])}, labelled=False)
    image = np.zeros((120, 80, 3), np.uint8)
    image[90:, :20] = 255
    cv2.imwrite(str(folder / "images" / "tall.jpg"), image)
    detector = make(input_size=size[0], input_width=size[1], mask_size=size[0] // 2)

    def trained(pixel_values, input_ids, attention_mask):
        """Stands for a network that finds what is bright."""
        bright = torch.nn.functional.adaptive_avg_pool2d(
            detector.normalise(pixel_values).mean(1), detector.config.mask_shape
        )
        return (bright > 0).float(), bright.mean((1, 2)).sigmoid()

    detector.forward = trained
    assert detector.encoder.grid(*size) == (size[0] // 16, size[1] // 16)
    store = LabelStore(folder)
    truth = frame((0, 90, 20, 30), size=120)[:, :80].astype(bool)
    for views in ({}, {"flip": True}, {"scales": (1.0, 1.5)}):
        heatmap = predict(detector, store, tmp_path / "out", **views).heatmap("tall")
        assert heatmap.shape == (size[0] // 2, size[1] // 2)
        back = resize(heatmap, 120, 80) > 127
        assert (back & truth).sum() / (back | truth).sum() > 0.8  # with swapped sides it would be below 0.2
