"""Prepared splits as a torch data set: read, augment, tokenise, collate.

Augmentation is a pure function of (seed, stage, epoch, index): no worker, rank or resumed process has random state of
its own.
"""

import atexit
import signal
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset

from lib.config import Experiment
from lib.data.augment import augment, fit
from lib.data.pixels import resize, to_planes
from lib.data.splits import Source, training_sources
from lib.errors import InputError
from lib.metrics.setting import Setting
from lib.stores import read_heatmap, read_image


class Entry(NamedTuple):
    """One image and what training needs to know of it."""

    id: str
    prompt: str
    score: float  # NaN without a label
    image: str  # path
    heatmap: str  # path; empty without a label
    predicted: bool  # the heatmap is a prediction, of which the run's setting says what counts


class DistortionData(Dataset):
    """Images of one or more prepared splits. Items are asked for by (epoch, index, weight).

    Gives a dict: `id`, `prompt`, `pixel_values` uint8 [3, *input_shape], `heatmap` uint8 [*mask_shape] in 0..255,
    `score` float (NaN without a label), `weight` (0 for a row that only keeps a rank busy).
    """

    def __init__(self, config: Experiment, sources: list[Source], train: bool):
        self.config, self.train = config, train
        self.setting = next((source.setting for source in sources if source.setting), None)
        tables = [_entries(source) for source in sources]
        # Not a list of objects: each worker would come to hold a copy of them, since counting references writes.
        self.entries = pa.concat_tables(tables).combine_chunks()

    def __len__(self) -> int:
        return len(self.entries)

    def entry(self, index: int) -> Entry:
        return Entry(*(column[index].as_py() for column in self.entries.columns))

    def scores(self) -> torch.Tensor:
        """float32 [images]: every label in 0..1, NaN where there is none."""
        return torch.from_numpy(self.entries["score"].to_numpy().astype(np.float32))

    def __getitem__(self, key) -> dict:
        epoch, index, weight = key
        entry, config = self.entry(index), self.config
        image, heatmap = self._read(entry)
        if self.train:
            rng = np.random.default_rng((config.seed, epoch, index))
            image, heatmap = augment(image, heatmap, rng, config)
        else:
            image, heatmap = fit(image, heatmap, config)
        return {
            "id": entry.id,
            "prompt": entry.prompt,
            "pixel_values": to_planes(image),
            "heatmap": torch.from_numpy(heatmap),
            "score": entry.score,
            "weight": float(weight),
        }

    def _read(self, entry: Entry) -> tuple[np.ndarray, np.ndarray]:
        image = read_image(entry.image)
        if not entry.heatmap:
            return image, np.zeros(image.shape[:2], np.uint8)
        if entry.predicted:
            return image, pseudo_label(read_heatmap(entry.heatmap), *image.shape[:2], self.setting)
        return image, read_heatmap(entry.heatmap, image.shape[:2])


def _entries(source: Source) -> pa.Table:
    """A row an image; its label is that of the split, or what was predicted."""
    images, ids, predictions, _ = source
    rows, labels = images.table.loc[ids], predictions or images
    has_label = rows["labelled"] | (predictions is not None)
    columns = {
        "id": ids,
        "prompt": rows["prompt"].tolist(),
        "score": labels.table.loc[ids, "score"].astype(float).tolist(),
        "image": [str(images.path / image) for image in rows["image"]],
        "heatmap": [str(labels.heatmap_path(id)) if has else "" for id, has in zip(ids, has_label, strict=True)],
        "predicted": [predictions is not None] * len(ids),
    }
    kinds = [pa.string(), pa.string(), pa.float64(), pa.string(), pa.string(), pa.bool_()]
    return pa.table(columns, pa.schema(zip(Entry._fields, kinds, strict=True)))


def pseudo_label(heatmap: np.ndarray, height: int, width: int, setting: Setting) -> np.ndarray:
    """A predicted heatmap uint8 [h, w] as a label uint8 [height, width]: 0 outside the regions of the setting."""
    counts = cv2.resize(setting.mask(heatmap), (width, height), interpolation=cv2.INTER_NEAREST)
    return resize(heatmap, height, width) * counts


def collate(items: list[dict], text) -> dict:
    """Items as a batch; prompts become tokens, padded as the detector's text encoder `text` says."""
    return {
        "id": [item["id"] for item in items],
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "heatmap": torch.stack([item["heatmap"] for item in items]),
        # Among Python's numbers one of NumPy, a predicted score, would make the whole batch float64.
        "score": torch.tensor([item["score"] for item in items], dtype=torch.float32),
        "weight": torch.tensor([item["weight"] for item in items], dtype=torch.float32),
        **text([item["prompt"] for item in items]),
    }


def make_loader(data: DistortionData, text, batches, num_workers: int) -> Iterator[dict]:
    """The batches of ready lists of keys, in pinned memory when there is a GPU; its workers end when it is closed.

    Raises InputError for what cannot be read, with and without workers.
    """
    loader = iter(
        DataLoader(
            data,
            batch_sampler=batches,
            collate_fn=partial(collate, text=text),
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_begin_worker,
        )
    )
    end = loader._shutdown_workers if num_workers else lambda: None
    # Python's own way to end is to send SIGTERM, which the workers do not hear, and to wait for them.
    atexit.register(end)
    try:
        yield from loader
    except InputError as error:  # what a worker raises has its traceback as text, of which this is the last line
        raise InputError(str(error).rpartition("InputError: ")[2].rstrip()) from None
    finally:
        atexit.unregister(end)
        end()


def _begin_worker(_number: int) -> None:
    """A stop signal may reach the whole process group: the trainer still needs its batches to end the step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)  # OpenCV's threads do not survive the fork


def training_data(config: Experiment) -> DistortionData:
    """The images that the run trains on, augmented: see `lib.data.splits.training_sources`, which also raises."""
    return DistortionData(config, training_sources(config), train=True)
