"""Inputs that are not square: shapes, refusals, and that height and width keep their places from image to store."""

import json

import cv2
import numpy as np
import pytest
import torch
from example_masks import frame
from example_runs import write_split

from lib.data.dataset import DistortionData, training_data
from lib.data.pixels import resize
from lib.data.splits import Source
from lib.errors import InputError
from lib.model.detector import DistortionDetector
from lib.predict.prediction import predict
from lib.stores import LabelStore
from lib.train import train

WIDE = {"input_size": 32, "input_width": 64, "mask_size": 16}


@pytest.fixture
def make(experiment):
    return lambda **changes: DistortionDetector.from_checkpoint(experiment(**WIDE | changes)).eval()


@pytest.mark.parametrize("shape", [(32, 64), (64, 32)])
def test_the_network_sees_and_gives_height_by_width(make, experiment, prepared, shape):
    height, width = shape
    detector = make(input_size=height, input_width=width, mask_size=height // 2)
    item = training_data(detector.config)[0, 0, 1]
    assert item["pixel_values"].shape == (3, height, width) and item["heatmap"].shape == (height // 2, width // 2)
    seen = []
    detector.encoder.register_forward_hook(lambda module, args, out: seen.append(out.grid))
    with torch.inference_mode():
        heatmap, score = detector(item["pixel_values"][None], **detector.text([item["prompt"]]))
    assert seen == [(height // 16, width // 16)]
    assert heatmap.shape == (1, height // 2, width // 2) and score.shape == (1,)
    assert detector.predict(np.zeros((40, 30, 3), np.uint8)).heatmap.shape == (40, 30)


def test_a_label_keeps_its_place(tmp_path, experiment):
    """A region in the lower left quarter stays there when the image is stretched to twice its width."""
    write_split(tmp_path / "train", {"low": ([(0, 256, 256, 256)], [])})
    store = LabelStore(tmp_path / "train")
    item = DistortionData(experiment(**WIDE), [Source(store, store.ids)], train=False)[0, 0, 1]
    expected = np.zeros((16, 32), np.uint8)
    expected[8:, :16] = 64
    np.testing.assert_array_equal(item["heatmap"], expected)


@pytest.mark.parametrize("views", [{}, {"flip": True}, {"scales": (1.0, 1.5)}])
@pytest.mark.parametrize("size", [(32, 64), (64, 32)])
def test_a_stored_heatmap_lies_where_the_image_is_bright(make, tmp_path, size, views):
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
    store = LabelStore(folder)
    heatmap = predict(detector, store, tmp_path / "out", **views).heatmap("tall")
    assert heatmap.shape == (size[0] // 2, size[1] // 2)
    truth = frame((0, 90, 20, 30), size=120, value=255)[:, :80]
    back = resize(heatmap, 120, 80) > 127
    overlap = (back & (truth > 127)).sum() / (back | (truth > 127)).sum()
    assert overlap > 0.8  # turned by a quarter, or with swapped sides, it would be below 0.2


def test_a_wide_run_from_training_to_predictions(experiment, prepared):
    config = experiment(**WIDE, epoch=1, val_iter=1)
    run = train(config)
    detector = DistortionDetector.from_pretrained(run)
    assert json.loads((run / "model" / "detector.json").read_text())["experiment"]["input_width"] == 64
    store = LabelStore(prepared / "test")
    predictions = predict(detector, store, run / "predictions" / "test", flip=True, scales=(1.0, 0.5))
    assert predictions.ids == store.ids
    for id in store.ids[:2]:
        assert predictions.heatmap(id).shape == (16, 32)


def test_shapes_that_cannot_work_are_refused_by_the_names_of_their_parameters(make):
    with pytest.raises(InputError, match="input_size 32 with input_width 1664 gives a grid of 2x104 tokens, .* 50 pos"):
        make(input_width=1664)
    with pytest.raises(InputError, match="room for .* text tokens .* a smaller input_size or input_width"):
        make(input_size=80, input_width=800)
    with pytest.raises(InputError, match="conv needs a grid .*, not 5x4; raise input_size and input_width or use"):
        make(input_size=80, input_width=64, score_head="conv")
