"""Predictions of a detector on a split, streamed to a store; test-time augmentation; ensembles of stores."""

import contextlib
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lib.data.dataset import DistortionData, make_loader
from lib.data.pixels import resize
from lib.engine.distributed import rank, world_size
from lib.engine.tracking import clock
from lib.errors import InputError
from lib.files import full_disk_told, replacing, writing
from lib.model import DistortionDetector
from lib.stores import LabelStore, PredictionStore, write_heatmap

GOING_ON = "where it stopped"  # after a full disk


def predict(
    detector: DistortionDetector, store: LabelStore, folder, ids: list[str] | None = None, batch_size: int = 16,
    num_workers: int = 0, flip: bool = False, scales: tuple[float, ...] = (1.0,), progress: bool = True,
) -> PredictionStore:  # fmt: skip
    """Predict a prepared split into `folder` (heatmaps of the model's mask_shape); shared out over ranks.

    Args:
        flip: average with the prediction of the mirrored image.
        scales: factors of the input size to average over; each is rounded to the encoder's stride.
    An interrupted prediction of the same weights, settings and data goes on where it stopped; another one is replaced.
    Raises InputError when there is nothing to predict, `folder` holds something else or the disk is full.
    """
    folder, ids = Path(folder), store.ids if ids is None else list(ids)
    if not ids:
        raise InputError(f"{store.path} holds no image to predict")
    _check_scales(detector, scales)
    data = hashlib.sha256((store.path / store.table_name).read_bytes()).hexdigest()[:16]
    views = {"flip": flip, "scales": [float(scale) for scale in scales]}
    done = _begin(folder, {"model": fingerprint(detector), "data": data, **views})
    mine = [id for id in ids[rank() :: world_size()] if id not in done]
    started = time.monotonic()
    with _open_log(folder) as log:
        found = _predictions(detector, store, mine, batch_size, num_workers, flip, scales)
        for count, (id, heatmap, score) in enumerate(found, 1):
            write_heatmap(folder / "heatmaps" / f"{id}.png", heatmap)
            log.write(json.dumps({"id": id, "score": score}) + "\n")
            if progress and rank() == 0 and (count % 500 == 0 or count == len(mine)):
                left = (time.monotonic() - started) / count * (len(mine) - count)
                print(f"predicted {count}/{len(mine)} images of {store.path}  {clock(left)} left", flush=True)
    return _finish(folder, ids)


@torch.inference_mode()
def _predictions(detector, store, ids, batch_size, num_workers, flip, scales) -> Iterator[tuple]:
    """Yield (id, heatmap uint8 of mask_shape, score) one image at a time."""
    detector.eval()
    data = DistortionData(detector.config, [(store, ids)], train=False)
    keys = [(0, i, 1) for i in range(len(ids))]
    batches = [keys[start : start + batch_size] for start in range(0, len(ids), batch_size)]
    for batch in make_loader(data, detector.text, batches, num_workers):
        heatmaps, scores = augmented(detector, batch, flip, scales)
        heatmaps = (heatmaps * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        yield from zip(batch["id"], heatmaps, scores.cpu().tolist(), strict=True)


def augmented(detector: DistortionDetector, batch: dict, flip: bool, scales) -> tuple[Tensor, Tensor]:
    """Mean over the views of a batch: heatmap [B, *mask_shape] (mirrored back) and score [B], both in 0..1."""
    device, stride = detector.device, detector.encoder.stride
    pixels, text = batch["pixel_values"].to(device), [batch[k].to(device) for k in ("input_ids", "attention_mask")]
    heatmaps, scores = [], []
    for scale in scales:
        shape = _scaled(pixels.shape[-2:], scale, stride)
        view = pixels
        if shape != pixels.shape[-2:]:
            view = F.interpolate(pixels, size=shape, mode="bicubic", antialias=True)
        for mirrored in (False, True)[: 1 + flip]:
            heatmap, score = detector(view.flip(-1) if mirrored else view, *text)
            heatmaps.append(heatmap.flip(-1) if mirrored else heatmap)
            scores.append(score)
    return torch.stack(heatmaps).mean(0), torch.stack(scores).mean(0)


def _scaled(shape: tuple[int, int], scale: float, stride: int) -> tuple[int, int]:
    """Height and width by a factor, in whole tokens; at 1 as they are."""
    return tuple(side if scale == 1 else max(stride, round(side * scale / stride) * stride) for side in shape)


def _check_scales(detector: DistortionDetector, scales) -> None:
    """Refuse what the position table or a head cannot do before the first image, not in the middle."""
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise InputError(f"scales {list(scales)} must be factors above 0, such as [1.0, 0.75]")
    for scale in scales:
        shape = _scaled(detector.config.input_shape, scale, detector.encoder.stride)
        detector.score_head.checked(detector.encoder.grid(*shape))


def ensemble(stores: list[PredictionStore], folder, weights: list[float] | None = None) -> PredictionStore:
    """Weighted mean of heatmaps and of scores of several stores over the ids they all must share.

    Heatmaps of other sizes are resized to the first store's. The threshold comes after, never before, averaging.
    """
    weights = np.asarray([1.0] * len(stores) if weights is None else weights, dtype=float)
    if len(weights) != len(stores) or not (weights >= 0).all() or not 0 < weights.sum() < math.inf:
        raise InputError(
            f"ensemble: {len(stores)} runs need as many weights, none negative and not all zero; got {weights.tolist()}"
        )
    weights /= weights.sum()
    for store in stores[1:]:
        difference = sorted(set(store.ids) ^ set(stores[0].ids))
        if difference:
            raise InputError(
                f"{store.path} and {stores[0].path} hold other images (for example {difference[0]}); predict both again"
            )
    folder, ids = Path(folder), stores[0].ids
    if folder.resolve() in [store.path.resolve() for store in stores]:
        raise InputError(f"{folder} is one of the runs to be averaged; write the ensemble to another folder")
    _begin(folder, {"ensemble": [str(store.path) for store in stores], "weights": weights.tolist()}, fresh=True)
    with _open_log(folder) as log:
        for id in ids:
            maps = [store.heatmap(id).astype(np.float32) for store in stores]
            mean = sum(w * resize(m, *maps[0].shape) for w, m in zip(weights, maps, strict=True))
            score = float(sum(w * store.table.at[id, "score"] for w, store in zip(weights, stores, strict=True)))
            write_heatmap(folder / "heatmaps" / f"{id}.png", np.round(mean).astype(np.uint8))
            log.write(json.dumps({"id": id, "score": score}) + "\n")
    return _finish(folder, ids)


def fingerprint(detector: DistortionDetector) -> str:
    """A hash of all weights and of what else decides the outputs: other predictions must not be mixed with these."""
    config = detector.config
    shapes = config.input_shape, config.mask_shape
    settings = (*shapes, config.text_padding, config.mask_head, config.score_head)
    digest = hashlib.sha256(repr(settings).encode())
    for name, value in detector.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _begin(folder: Path, identity: dict, fresh: bool = False) -> set[str]:
    """Prepare the folder; returns the ids that an interrupted run of the same identity has written."""
    if rank() == 0:
        _clear(folder, identity, fresh)
    if world_size() > 1:
        dist.barrier()
    return {id for id in _partial_scores(folder) if (folder / "heatmaps" / f"{id}.png").is_file()}


def _clear(folder: Path, identity: dict, fresh: bool) -> None:
    """Remove predictions of another identity, and note this one."""
    note = folder / "prediction.json"
    if (folder / "heatmaps").is_dir() and not note.is_file():
        raise InputError(f"{folder} holds heatmaps that are no predictions of this kit; give another folder")
    with writing(folder, "give a folder with write access and free space"):
        if fresh or not note.is_file() or note.read_text(encoding="utf-8") != json.dumps(identity):
            for path in (folder / "scores.parquet", *folder.glob("scores_*.part.jsonl")):
                path.unlink(missing_ok=True)
            shutil.rmtree(folder / "heatmaps", ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(note) as part:
                part.write_text(json.dumps(identity), encoding="utf-8")
        (folder / "heatmaps").mkdir(exist_ok=True)


def _finish(folder: Path, ids: list[str]) -> PredictionStore:
    """Gather the ranks' scores into scores.parquet, in the order asked for."""
    if world_size() > 1:
        dist.barrier()
    if rank() == 0:
        scores = _partial_scores(folder)
        table = pd.DataFrame({"id": ids, "score": [scores[id] for id in ids]})
        with full_disk_told(folder, GOING_ON), replacing(folder / "scores.parquet") as part:
            table.to_parquet(part, index=False)
    if world_size() > 1:
        dist.barrier()
    return PredictionStore(folder)


@contextlib.contextmanager
def _open_log(folder: Path) -> Iterator[TextIO]:
    """This rank's scores so far, to be gone on with, one JSON object a line; a full disk inside is told."""
    path = folder / f"scores_{rank()}.part.jsonl"
    with full_disk_told(folder, GOING_ON), open(path, "a+", encoding="ascii", errors="replace") as log:
        log.seek(0)
        if not log.read().endswith("\n"):
            log.write("\n")  # a killed process may have left half a line
        yield log


def _partial_scores(folder: Path) -> dict[str, float]:
    """{id: score} of all ranks' lines; an image whose line is torn is predicted again."""
    scores = {}
    for path in sorted(folder.glob("scores_*.part.jsonl")):
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                scores[row["id"]] = row["score"]
    return scores
