"""Prepared splits as a torch data set: read, augment, tokenise, collate, and the order in which steps see them.

Order and augmentation are pure functions of (seed, stage, epoch, index): no worker, rank or resumed process has
random state of its own.
"""

import signal
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lib.config import Experiment
from lib.data.augment import augment
from lib.data.held_out import held_out_by
from lib.data.pixels import resize, to_pixels
from lib.data.pseudo import PseudoLabels, pseudo_label
from lib.errors import InputError
from lib.metrics.setting import Setting
from lib.stores import LabelStore, read_heatmap, read_image


class Entry(NamedTuple):
    """One image: what the manifest says of it, read once (a look-up in the table costs more than decoding)."""

    id: str
    prompt: str
    score: float  # NaN without a label
    image: str
    heatmap: str  # empty without a label
    setting: Setting | None = None  # of a predicted heatmap: what of it counts


class DistortionData(Dataset):
    """Images of one or more prepared splits. Items are asked for by (epoch, index, weight).

    Gives a dict: `id`, `prompt`, `pixel_values` float32 [3, *input_shape], `heatmap` float32 [*mask_shape] in 0..1,
    `score` float (NaN without a label), `weight` (0 for a row that only keeps a rank busy).
    """

    def __init__(
        self, config: Experiment, sources: list[tuple[LabelStore, list[str]]], train: bool,
        pseudo: PseudoLabels | None = None,
    ):  # fmt: skip
        self.config, self.train = config, train
        self.entries = [entry for store, ids in sources for entry in _entries(store, ids)]
        self.entries += _predicted_entries(pseudo) if pseudo else []

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key) -> dict:
        epoch, index, weight = key
        entry, config = self.entries[index], self.config
        image, heatmap = _read(entry)
        if self.train:
            rng = np.random.default_rng((config.seed, epoch, index))
            chances = config.hflip, config.random_crop, config.colour_jitter, config.grey
            image, heatmap = augment(image, heatmap, rng, *chances)
        heatmap = resize(heatmap, *config.mask_shape)
        return {
            "id": entry.id,
            "prompt": entry.prompt,
            "pixel_values": to_pixels(image, config.input_shape, config.model),
            "heatmap": torch.from_numpy(heatmap).float() / 255,
            "score": entry.score,
            "weight": float(weight),
        }


def _entries(store: LabelStore, ids: list[str]) -> list[Entry]:
    table = store.table.loc[ids]
    labels = [str(store.heatmap_path(id)) if has else "" for id, has in zip(ids, table["labelled"], strict=True)]
    images = [str(store.path / image) for image in table["image"]]
    scores = table["score"].astype(float)
    return [Entry(*row) for row in zip(ids, table["prompt"], scores, images, labels, strict=True)]


def _predicted_entries(pseudo: PseudoLabels) -> list[Entry]:
    scores = pseudo.predictions.table["score"].astype(float)
    return [
        entry._replace(
            score=scores[entry.id], heatmap=str(pseudo.predictions.heatmap_path(entry.id)), setting=pseudo.setting
        )
        for entry in _entries(pseudo.images, pseudo.ids)
    ]


def _read(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    image = read_image(entry.image)
    if not entry.heatmap:
        return image, np.zeros(image.shape[:2], np.uint8)
    heatmap = read_heatmap(entry.heatmap)
    if entry.setting:
        return image, pseudo_label(heatmap, *image.shape[:2], entry.setting)
    if heatmap.shape != image.shape[:2]:
        raise InputError(
            f"{entry.heatmap} is {heatmap.shape} and its image {image.shape[:2]} pixels; prepare the data again"
        )
    return image, heatmap


class Collate:
    """Items to a batch; prompts become tokens padded as the detector's text encoder says."""

    def __init__(self, text):
        self.text = text

    def __call__(self, items: list[dict]) -> dict:
        return {
            "id": [item["id"] for item in items],
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            "heatmap": torch.stack([item["heatmap"] for item in items]),
            "score": torch.tensor([item["score"] for item in items]),
            "weight": torch.tensor([item["weight"] for item in items]),
            **self.text([item["prompt"] for item in items]),
        }


class StepSampler:
    """Micro-batches of one rank for the steps of a stage, from any step on.

    One optimizer step takes batch_size x world x accumulate images of the epoch's permutation; the last step of
    an epoch takes what is left, shared out evenly. A rank that would get nothing receives one row of weight 0,
    because every rank must take part in every step. `splits` cuts each micro-batch into so many.
    """

    def __init__(
        self, length: int, seed: int, stage: int, batch_size: int, accumulate: int, rank: int = 0, world: int = 1,
        splits: int = 1,
    ):  # fmt: skip
        self.length, self.seed, self.stage, self.rank, self.world = length, seed, stage, rank, world
        self.per_step = batch_size * world * accumulate
        self.micro_batch = -(-batch_size // splits)
        self.steps_per_epoch = -(-length // self.per_step)

    def images_in_step(self, step: int) -> int:
        """How many images all ranks see in this step of the stage."""
        return min(self.per_step, self.length - step % self.steps_per_epoch * self.per_step)

    def micro_batches(self, step: int) -> list[list[tuple]]:
        """This rank's micro-batches of a step: lists of (epoch, index, weight)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        # The stage goes into the epoch's number, so that no augmentation of the warm-up comes again.
        key = self.stage * 1_000_000 + epoch
        order = np.random.default_rng((self.seed, key)).permutation(self.length)
        images = order[within * self.per_step : (within + 1) * self.per_step]
        # First into micro-batches, then these among the ranks: batch statistics are the same for any number of them.
        parts = np.array_split(images, -(-len(images) // (self.micro_batch * self.world)))
        shares = [np.array_split(part, self.world)[self.rank] for part in parts]
        return [[(key, int(i), 1) for i in share] or [(key, int(images[0]), 0)] for share in shares]

    def flat(self, first: int, last: int):
        """All micro-batches of the steps first..last-1, one after another, as a DataLoader wants them."""
        for step in range(first, last):
            yield from self.micro_batches(step)


def make_loader(data: DistortionData, text, batches, num_workers: int) -> DataLoader:
    """A loader over ready lists of keys; pinned memory when there is a GPU."""
    return DataLoader(
        data,
        batch_sampler=batches,
        collate_fn=Collate(text),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_begin_worker,
    )


def _begin_worker(_number: int) -> None:
    """A stop signal may reach the whole process group: the trainer still needs its batches to end the step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)  # OpenCV's threads do not survive the fork


def training_data(config: Experiment) -> DistortionData:
    """Labelled images of train without the held-out ones, `negative_num` negatives, and the pseudo-labelled ones."""
    store = LabelStore(Path(config.data_path) / "train")
    held_out = set(held_out_by(config.folder, config.data_path, config))
    sources = [(store, [id for id in labelled(store) if id not in held_out])]
    if not sources[0][1]:
        raise InputError(f"{store.path} has no labelled image to train on; check its problems.csv")
    if config.negative_num:
        negatives = LabelStore(Path(config.data_path) / "negatives")
        if len(negatives.ids) < config.negative_num:
            held = f"{negatives.path} holds {len(negatives.ids)}"
            raise InputError(f"negative_num: {config.negative_num}, but {held}; prepare more or lower it")
        chosen = np.random.default_rng(config.seed).permutation(negatives.ids)[: config.negative_num]
        sources.append((negatives, sorted(chosen)))
    return DistortionData(config, sources, train=True, pseudo=_pseudo_labels(config, sources[0][1]))


def _pseudo_labels(config: Experiment, trained: list[str]) -> PseudoLabels | None:
    """The pseudo-labels asked for; InputError when their images have labels here or are what the run evaluates on."""
    if not config.pseudo_labels:
        return None
    pseudo = PseudoLabels(config.pseudo_labels, config.data_path)
    if pseudo.images.path == Path(config.data_path) / "train":
        pseudo.refuse_shared(trained, "trained on with the annotators' labels")
    validated = validation_source(config) if config.val_iter > 0 or config.val_split else None
    if validated and validated[0].path == pseudo.images.path:
        pseudo.refuse_shared(validated[1], "those that this run evaluates on")
    return pseudo


def validation_source(config: Experiment) -> tuple[LabelStore, list[str]] | None:
    """What to evaluate on while training: the held-out images, else the labelled `val` split, else nothing."""
    if config.val_split:
        held_out = held_out_by(config.folder, config.data_path, config)
        return LabelStore(Path(config.data_path) / "train"), held_out
    if not (Path(config.data_path) / "val" / "manifest.parquet").is_file():
        return None
    store = LabelStore(Path(config.data_path) / "val")
    ids = labelled(store)
    return (store, ids) if ids else None


def labelled(store: LabelStore) -> list[str]:
    """The ids that have regions drawn by annotators (possibly none)."""
    return list(store.table.index[store.table["labelled"]])
