"""Runs as training leaves them, without the training, and predictions painted from the labels."""

import math

import numpy as np
import pandas as pd
import torch

from lib.metrics.heatmaps import Heatmaps
from lib.model.detector import DistortionDetector
from lib.model.lora import set_trainable
from lib.stores import LabelStore
from lib.train.checkpoint import write_finished


def finished(config, stirred: bool = False):
    """The folder of a run with the weights that training would start from, or `stirred` where a training changes them
    (an adapter as it begins changes nothing)."""
    config.save(config.folder / "config.yaml")
    detector = DistortionDetector.from_checkpoint(config)
    if stirred:
        set_trainable(detector, "main")
        for parameter in filter(lambda one: one.requires_grad, detector.parameters()):
            parameter.data += 0.05 * torch.randn_like(parameter)
    detector.save_pretrained(config.folder / "model")
    write_finished(config.folder, detector, steps=1200, seconds=12.5, images=24)
    return config.folder


def forget_labels(split) -> None:
    """Make a prepared split one without labels."""
    table = pd.read_parquet(split / "manifest.parquet").assign(labelled=False, score=math.nan, mos=math.nan)
    table.to_parquet(split / "manifest.parquet", index=False)


def painted(store: LabelStore, true: int, false: int) -> Heatmaps:
    """Every true region at `true`, and a false region in a sound corner of each image at `false`."""
    heatmaps = {}
    for id in store.ids:
        label = store.heatmap(id)
        heatmap = np.where(label > 0, true, 0).astype(np.uint8)
        corner = heatmap[: len(label) // 4, : label.shape[1] // 4]
        corner[label[: len(label) // 4, : label.shape[1] // 4] == 0] = false
        heatmaps[id] = heatmap
    return Heatmaps(heatmaps, store.table["score"].to_dict())
