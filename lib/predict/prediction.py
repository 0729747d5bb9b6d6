"""Predictions of a detector on a split, streamed to a store; test-time augmentation; ensembles of stores."""

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.data.dataset import DistortionData, make_loader
from lib.data.pixels import resize
from lib.data.splits import Source
from lib.distributed import precision, rank
from lib.errors import InputError
from lib.model.detector import DistortionDetector
from lib.model.encoders.text import TextEncoder
from lib.model.weights import digest
from lib.predict.growing import GrowingStore, file_mark, mark
from lib.stores import LabelStore, PredictionStore


def predict(
    detector: DistortionDetector, store: LabelStore, folder, ids: list[str] | None = None, batch_size: int = 16,
    num_workers: int = 0, flip: bool = False, scales: tuple[float, ...] = (1.0,), progress: bool = True,
) -> PredictionStore:  # fmt: skip
    """Predict a prepared split into `folder` (heatmaps of the model's mask_shape); shared out over ranks.

    Args:
        flip: average with the prediction of the mirrored image.
        scales: factors of the input size to average over; each is rounded to the encoder's stride.
    An interrupted prediction of the same weights and settings goes on where it stopped, one of others is replaced. An
    image is predicted again when it or its prompt has changed, whatever its labels.
    Raises InputError when there is nothing to predict, the model's output is not finite, `folder` holds something else
    or the disk is full.
    """
    ids = store.ids if ids is None else list(ids)
    if not ids:
        raise InputError(f"{store.path} holds no image to predict")
    text = _text_for(detector, scales)
    identity = {"model": fingerprint(detector), "precision": _precision(detector)}
    identity |= {"flip": flip, "scales": [float(scale) for scale in scales]}
    remedy = "restore it or prepare the data again"
    marks = {  # labels do not decide a prediction, and an image's time and size tell its pixels
        id: mark(id, prompt, image, file_mark(store.path / image, remedy))
        for id, prompt, image in store.table.loc[ids, ["prompt", "image"]].itertuples()
    }
    growing, started = GrowingStore(folder, identity, marks), time.monotonic()
    total = len(growing.left)
    if growing.left and detector.config.lora_rank:  # adapters on their own take half of its time again
        detector = copy.deepcopy(detector).merged()
    predictions = _predictions(detector, text, store, growing.left, batch_size, num_workers, flip, scales)
    with growing.writer() as write:
        for count, prediction in enumerate(predictions, 1):
            write(*prediction)
            if progress and rank() == 0 and (count % 500 == 0 or count == total):
                left = timedelta(seconds=round((time.monotonic() - started) / count * (total - count)))
                print(f"predicted {count}/{total} images of {store.path}  {left} left", flush=True)
    return growing.finish()


@torch.inference_mode()
def _predictions(detector, text, store, ids, batch_size, num_workers, flip, scales) -> Iterator[tuple]:
    """Yield (id, heatmap uint8 of mask_shape, score) one image at a time."""
    detector.eval()
    data = DistortionData(detector.config, [Source(store, ids)], train=False)
    keys = [(0, i, 1) for i in range(len(ids))]
    batches = [keys[start : start + batch_size] for start in range(0, len(ids), batch_size)]
    computing = None  # read only when the next batch is on its way, so that a GPU need not wait for this process
    for batch in make_loader(data, text, batches, num_workers):
        with _autocast(_precision(detector), detector.device.type):
            heatmaps, scores = augmented(detector, batch, flip, scales)
        finite = scores.isfinite() & heatmaps.flatten(1).isfinite().all(1)
        heatmaps = (heatmaps * 255).round().clamp(0, 255).to(torch.uint8)
        if computing:
            yield from _read(*computing)
        computing = batch["id"], finite, heatmaps, scores
    if computing:
        yield from _read(*computing)


def _read(ids: list[str], finite: Tensor, heatmaps: Tensor, scores: Tensor) -> Iterator[tuple]:
    """(id, heatmap, score) of each image of a batch, copied to the host; InputError for values that are not finite."""
    if wrong := [id for id, fine in zip(ids, finite.tolist(), strict=True) if not fine]:
        raise InputError(
            f"{', '.join(wrong)}: what the model predicts is not finite; predict with another run, or train one "
            "anew with a lower lr or mixed_precision: bf16 or no"
        )
    return zip(ids, heatmaps.cpu().numpy(), scores.cpu().tolist(), strict=True)


def _precision(detector: DistortionDetector) -> str:
    """no, bf16 or fp16: on a GPU as the run trained, since float32 takes many times as long there; else float32."""
    return precision(detector.config) if detector.device.type == "cuda" else "no"


def _autocast(kind: str, device: str) -> contextlib.AbstractContextManager:
    """`no` leaves what a caller has set: a validation computes as its training does."""
    if kind == "no":
        return contextlib.nullcontext()
    return torch.autocast(device, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[kind])


def augmented(detector: DistortionDetector, batch: dict, flip: bool, scales) -> tuple[Tensor, Tensor]:
    """Mean over the views of a batch: heatmap [B, *mask_shape] (mirrored back) and score [B], both in 0..1."""
    device, stride = detector.device, detector.encoder.stride
    pixels, *text = (batch[k].to(device, non_blocking=True) for k in ("pixel_values", "input_ids", "attention_mask"))
    heatmaps, scores = [], []
    for scale in scales:
        shape = _scaled(pixels.shape[-2:], scale, stride)
        view = pixels
        if shape != pixels.shape[-2:]:
            view = F.interpolate(pixels / 255, size=shape, mode="bicubic", antialias=True)
        for mirrored in (False, True)[: 1 + flip]:
            heatmap, score = detector(view.flip(-1) if mirrored else view, *text)
            heatmaps.append(heatmap.flip(-1) if mirrored else heatmap)
            scores.append(score)
    return torch.stack(heatmaps).mean(0), torch.stack(scores).mean(0)


def _scaled(shape: tuple[int, int], scale: float, stride: int) -> tuple[int, int]:
    """Height and width by a factor, in whole tokens; at 1 as they are."""
    return tuple(side if scale == 1 else max(stride, round(side * scale / stride) * stride) for side in shape)


def _text_for(detector: DistortionDetector, scales) -> TextEncoder:
    """The text encoder for all scales; what the encoder or a head cannot do is refused before the first image."""
    config, stride = detector.config, detector.encoder.stride
    return detector.text_for(*[_scaled(config.input_shape, scale, stride) for scale in scales])


def ensemble(stores: list[PredictionStore], folder, weights: list[float] | None = None) -> PredictionStore:
    """Weighted mean of heatmaps and of scores of several stores over the ids they all must share.

    Heatmaps of other sizes are resized to the first store's. The threshold comes after, never before, averaging.
    An interrupted ensemble of the same stores and weights goes on where it stopped; an image that a store has
    predicted anew is averaged again.
    Raises InputError when the stores or weights do not go together, and as `predict` does.
    """
    weights = shares(len(stores), weights)
    for store in stores[1:]:
        if difference := sorted(set(store.ids) ^ set(stores[0].ids)):
            raise InputError(
                f"{store.path} and {stores[0].path} hold other images (for example {difference[0]}); predict both again"
            )
    if Path(folder).resolve() in [store.path.resolve() for store in stores]:
        raise InputError(f"{folder} is one of the runs to be averaged; write the ensemble to another folder")
    score, again = lambda store, id: float(store.table.at[id, "score"]), "predict again"
    marks = {
        id: mark([[score(store, id), *file_mark(store.heatmap_path(id), again)] for store in stores])
        for id in stores[0].ids
    }
    identity = {"ensemble": [str(store.path) for store in stores], "weights": weights.tolist()}
    growing = GrowingStore(folder, identity, marks)
    with growing.writer() as write:
        for id in growing.left:
            maps = [store.heatmap(id).astype(np.float32) for store in stores]
            mean = sum(w * resize(m, *maps[0].shape) for w, m in zip(weights, maps, strict=True))
            rated = float(sum(w * score(store, id) for w, store in zip(weights, stores, strict=True)))
            write(id, np.round(mean).astype(np.uint8), rated)
    return growing.finish()


def shares(count: int, weights: list[float] | None) -> np.ndarray:
    """The weights of so many stores, which add up to 1; all alike without any given."""
    weights = [1.0] * count if weights is None else list(weights)
    usable = all(isinstance(weight, int | float) and weight >= 0 for weight in weights)
    if len(weights) != count or not usable or not 0 < sum(weights) < math.inf:
        raise InputError(f"ensemble: {count} runs need as many weights, none negative and not all zero; got {weights}")
    return np.asarray(weights, dtype=float) / sum(weights)


def fingerprint(detector: DistortionDetector) -> str:
    """A hash of all weights and of what else decides the outputs: other predictions must not be mixed with these."""
    config = detector.config
    settings = (
        config.input_shape, config.mask_shape, config.text_padding, config.mask_head, config.score_head,
        config.align_corners, config.resampling,
    )  # fmt: skip
    return digest(detector.state_dict(), repr(settings))[:16]
