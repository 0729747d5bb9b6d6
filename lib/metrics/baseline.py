"""The trivial baseline: for every image the mean training heatmap and the mean training score.

Whatever a model reaches must be read against it: labels favour the middle of the frame, and scores cluster.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from lib.errors import InputError
from lib.stores import LabelStore

SIDE = 128


@dataclass(frozen=True)
class Constant:
    """The same heatmap (uint8 [h, w]) and score (0..1) for each of `ids`, with the interface of a prediction store."""

    ids: list[str]
    mean: np.ndarray
    score: float

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame({"score": self.score}, index=pd.Index(self.ids, name="id", dtype=object))

    def heatmap(self, id: str) -> np.ndarray:
        return self.mean

    def portable(self, ids: Iterable[str]) -> "Constant":
        """The same for a worker process; see `lib.metrics.portable`."""
        return Constant(list(ids), self.mean, self.score)


def mean_label(store: LabelStore, side: int = SIDE, without: Iterable[str] = ()) -> np.ndarray | None:
    """Mean of the label heatmaps, each stretched to float32 [side, side], 0..255; None without any label.

    `without` are ids to leave out.
    """
    ids = store.table.index[store.table["labelled"]].difference(list(without), sort=False)
    total = np.zeros((side, side))
    for id in ids:
        total += cv2.resize(store.heatmap(id), (side, side), interpolation=cv2.INTER_AREA)
    return (total / len(ids)).astype(np.float32) if len(ids) else None


def trivial_predictions(train: LabelStore, ids: Iterable[str], without: Iterable[str] = ()) -> Constant:
    """The trivial baseline learnt from `train`, for the images `ids` of any split; one heatmap is held in memory.

    `without` are ids of `train` that it must not have seen.
    Raises InputError when `train` has no label or no score to learn from.
    """
    mean, score = mean_label(train, without=without), train.table["score"].drop(index=list(without)).mean()
    if mean is None or pd.isna(score):
        raise InputError(f"{train.path} has no labels to average; the trivial baseline needs a labelled training split")
    return Constant(list(ids), mean.round().astype(np.uint8), float(score))
