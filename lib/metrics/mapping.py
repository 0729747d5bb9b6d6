"""One function over the images of a set, by several processes where that pays."""

import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field

import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from lib.stores import Store

CHUNK = 16  # images a task: small enough for progress, large enough to hide the cost of a task


@dataclass
class Heatmaps:
    """Heatmaps in memory with the interface of a store: `ids`, `heatmap(id)`, `table` with a column `score`."""

    heatmaps: MutableMapping[str, np.ndarray]
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        return list(self.heatmaps)

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame({"score": pd.Series(self.scores, dtype=float)}).rename_axis("id")

    def heatmap(self, id: str) -> np.ndarray:
        return self.heatmaps[id]


def pays_for(masks: int) -> int:
    """How many processes pay for matching this many masks: one takes seconds to start, a mask half a millisecond."""
    return max(1, min(os.cpu_count() or 1, masks // 20_000))


def map_images(function, predictions, labels, ids, workers, *arguments) -> Iterator:
    """Yield `function(id, predictions, labels, *arguments)` for each id, in order, from several processes."""
    chunks = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
    if workers == 1:
        yield from (function(id, predictions, labels, *arguments) for id in ids)
        return
    tasks = (
        delayed(_map_chunk)(function, chunk, portable(predictions, chunk), portable(labels, chunk), arguments)
        for chunk in chunks
    )
    # loky starts clean processes: nothing is forked, so threads and CUDA of this process do no harm.
    for results in Parallel(n_jobs=workers, return_as="generator", max_nbytes=None)(tasks):
        yield from results


def _map_chunk(function, ids, predictions, labels, arguments) -> list:
    cv2.setNumThreads(1)  # the processes share the cores already
    return [function(id, predictions, labels, *arguments) for id in ids]


def portable(source, ids):
    """What a worker needs to read `ids`: a store is sent as its path, other sources as these heatmaps."""
    if isinstance(source, Store):
        return type(source)(source.path)
    if hasattr(source, "portable"):
        return source.portable(ids)
    return Heatmaps({id: source.heatmap(id) for id in ids})
