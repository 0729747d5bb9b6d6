"""Heatmaps that are no store on disk, and one function over the images of a set.

A source of heatmaps has `ids`, `heatmap(id)` (uint8 [H, W]), `table` with a column `score` (0..1), and `only(ids)`, the
same for some of the images, light to send to another process. `lib.stores.Store` is one, too.
"""

import os
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field

import cv2
import numpy as np

CHUNK = 16  # images a task: small enough for progress, large enough to hide the cost of a task


@dataclass
class Heatmaps:
    """A source in memory."""

    heatmaps: MutableMapping[str, np.ndarray]
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        return list(self.heatmaps)

    @property
    def table(self):
        import pandas as pd  # the organisers' command does without the second that this takes

        return pd.DataFrame({"score": pd.Series(self.scores, dtype=float)}).rename_axis("id")

    def heatmap(self, id: str) -> np.ndarray:
        return self.heatmaps[id]

    def only(self, ids: Iterable[str]) -> "Heatmaps":
        return Heatmaps({id: self.heatmaps[id] for id in ids})


def map_images(
    function: Callable, predictions, labels, ids, *arguments, cost=1, workers=None, progress=None
) -> Iterator:
    """Yield `function(id, predictions, labels, *arguments)` of each id, in order, by several processes where that pays.

    `cost` is how many times as long as the matching of a mask an image takes: a process takes seconds to start, a mask
    half a millisecond. `workers` sets the number of processes by hand; `progress(done, total)` is called as images
    finish.
    """
    workers = workers or max(1, min(os.cpu_count() or 1, cost * len(ids) // 20_000))
    if workers == 1:
        found = (function(id, predictions, labels, *arguments) for id in ids)
    else:
        from joblib import Parallel, delayed  # only large sets need it

        chunks = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
        tasks = (delayed(_chunk)(function, c, predictions.only(c), labels.only(c), arguments) for c in chunks)
        # loky starts clean processes: nothing is forked, so threads and CUDA of this process do no harm.
        parts = Parallel(n_jobs=workers, return_as="generator", max_nbytes=None)(tasks)
        found = (result for part in parts for result in part)
    for done, result in enumerate(found, start=1):
        yield result
        if progress:
            progress(done, len(ids))


def _chunk(function, ids, predictions, labels, arguments) -> list:
    cv2.setNumThreads(1)  # the processes share the cores already
    return [function(id, predictions, labels, *arguments) for id in ids]
