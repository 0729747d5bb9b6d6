"""`pseudo_labels`: what an earlier run predicted on a split becomes training data of the next."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from example_runs import EVALUATION

from lib.data.dataset import collate, pseudo_label, training_data
from lib.errors import InputError
from lib.metrics.setting import Setting
from lib.stores import LabelStore, write_heatmap

SIDE = 16


def predictions_of(run, split: str, ids, heatmap=None):
    """What a run with threshold 100 has predicted: a strong spot top left, a faint one at the bottom."""
    if heatmap is None:
        heatmap = np.zeros((SIDE, SIDE), np.uint8)
        heatmap[:4, :4], heatmap[12:] = 200, 60
    folder = run / "predictions" / split
    for id in ids:
        write_heatmap(folder / "heatmaps" / f"{id}.png", heatmap)
    pd.DataFrame({"id": list(ids), "score": 0.4}).to_parquet(folder / "scores.parquet", index=False)
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"threshold": 100}))
    return folder


def test_a_label_is_what_the_setting_counts():
    heatmap = np.zeros((SIDE, SIDE), np.uint8)
    heatmap[:4, :4], heatmap[12:], heatmap[8, 8] = 200, 60, 255
    label = pseudo_label(heatmap, 32, 64, Setting(100, min_area=0.01))
    assert label.shape == (32, 64) and label.dtype == np.uint8
    assert (label[:7, :14] == 200).all()  # the spot, at the image's size
    assert not label[20:].any()  # below the threshold
    assert not label[15:19, 30:38].any()  # one bright pixel: too small
    assert pseudo_label(heatmap, SIDE, SIDE, Setting(50, min_area=0.01))[13:].all()


def test_predicted_images_are_appended_to_train(own, experiment, tmp_path):
    test = LabelStore(own / "test")
    folder = predictions_of(tmp_path / "before", "test", test.ids)
    plain = training_data(experiment(data_path=str(own)))
    still = {"mask_size": SIDE, "hflip": 0.0, "random_crop": 0.0}
    both = training_data(experiment(data_path=str(own), pseudo_labels=str(folder), **still))
    assert len(both) == len(plain) + len(test.ids)
    item = both[(0, len(plain), 1)]
    assert item["id"] == test.ids[0] and item["prompt"] == test.table["prompt"].iloc[0]
    assert item["score"] == pytest.approx(0.4)
    assert int(item["heatmap"][:3, :3].min()) == pytest.approx(200, abs=2)
    assert int(item["heatmap"][6:].max()) == 0
    # A predicted score is a number of NumPy; among those of the annotators it must not make the batch float64, because
    # ranks gather numbers of one kind.
    batch = collate([both[(0, 0, 1)], item], lambda prompts: {})
    assert batch["score"].dtype == torch.float32 and batch["score"][1] == pytest.approx(0.4)


def test_predictions_that_cannot_be_learned_from_are_refused(own, experiment, tmp_path):
    train_ids, before = LabelStore(own / "train").ids, tmp_path / "before"
    validated = predictions_of(before, "val", LabelStore(own / "val").ids)
    training_data(experiment(data_path=str(own), pseudo_labels=str(validated)))  # nothing is evaluated
    for folder, changes, told in [
        (validated, {"val_iter": 1}, "those that this run evaluates on .* give the predictions of another split"),
        (predictions_of(before, "train", train_ids), {}, "trained on with the annotators' labels"),
        (predictions_of(before, "held_out", train_ids[:3]), {}, "3 images of .*held_out"),
        (predictions_of(before, "test", ["stranger"]), {}, "predictions of stranger, which .*test does not know"),
        (tmp_path / "nowhere" / "test", {}, "holds no scores.parquet"),
    ]:
        with pytest.raises(InputError, match=told):
            training_data(experiment(data_path=str(own), pseudo_labels=str(folder), **changes))
