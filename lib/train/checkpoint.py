"""A run's folder and its checkpoints: begun, saved whole or not at all, gone on from only as it was."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib.config import Experiment, free_to_change, read_yaml
from lib.data.dataset import DistortionData
from lib.data.splits import RECORD
from lib.errors import InputError
from lib.files import writing
from lib.model.lora import own_weights

LOCK = ".lock"  # in a run's folder, held by the process that trains into it
STATE = "state.json"


# The run's folder


def open_folder(config: Experiment) -> Path:
    """Create the run's folder with its config.yaml; not to be called by a process that is its `sole_owner`.

    Raises InputError when it cannot be written, or holds a run begun with other parameters; those are shown.
    """
    folder = config.folder
    with writing(folder, "free space, or choose another folder with the parameter runs"):
        folder.mkdir(parents=True, exist_ok=True)
        begun = _begun(folder)
        if begun and (changed := _changed_parameters(folder, config)):
            raise InputError(
                f"{folder} was begun with other parameters ({'; '.join(changed)}); restore them, or give another "
                "experiment_name"
            )
        if not begun:  # the data may have been prepared anew since
            (folder / RECORD).unlink(missing_ok=True)
        config.save(folder / "config.yaml")
    return folder


def _begun(folder: Path) -> bool:
    """Whether there is something to lose: a model, a checkpoint, a record, or a training that has just begun."""
    metrics = folder / "metrics.jsonl"
    recorded = metrics.is_file() and metrics.stat().st_size > 0
    return recorded or (folder / "finished.json").is_file() or bool(_checkpoints(folder)) or is_being_trained(folder)


def _changed_parameters(folder: Path, config: Experiment) -> list[str]:
    """Those that decide what is learned and differ from the folder's config.yaml, if there is one."""
    if not (folder / "config.yaml").is_file():
        return []
    now, free = config.to_dict(), free_to_change(finished=(folder / "finished.json").is_file())
    then = {**Experiment().to_dict(), **read_yaml(folder / "config.yaml")}  # a newer parameter had its default
    return [f"{k}: {then[k]!r} then, {now[k]!r} now" for k in now if k not in free and then[k] != now[k]]


@contextlib.contextmanager
def sole_owner(folder: Path):
    """Within the block no other process may train into this folder; a killed owner leaves no lock behind."""
    with open(folder / LOCK, "w") as file:
        for patience in (0.1, 0.1, 0):  # `is_being_trained` holds it for an instant
            if _locked(file, fcntl.LOCK_EX):
                break
            time.sleep(patience)
        else:
            raise InputError(
                f"{folder} is being trained by another process; wait for it, stop it, or give another experiment_name"
            )
        yield


def is_being_trained(folder: Path) -> bool:
    """Whether another process trains into this folder now, on this machine or on one that shares the disk."""
    try:
        with open(Path(folder) / LOCK) as file:
            return not _locked(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _locked(file, kind: int) -> bool:
    """Take the lock, which ends with the file; False when another process has it. Some file systems have no locks."""
    try:
        # lockf, not flock: data workers forked from a killed trainer must not go on holding the lock.
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


# Writing and reading


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """An empty folder `<target>.part` that takes the place of `target` when the block has filled it and it is on disk.

    A process killed inside leaves the part, which counts for nothing.
    """
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    for path in part.rglob("*"):
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(run: Path, step: int, groups: dict[str, dict[str, Tensor]], state: dict, keep: int) -> None:
    """Write `checkpoints/step_<n>/<group>.safetensors` and `state.json`, then drop all but the newest `keep`."""
    with written_aside(run / "checkpoints" / f"step_{step:08d}") as part:
        for group, tensors in groups.items():
            tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            save_file(tensors, part / f"{group}.safetensors")
        (part / STATE).write_text(json.dumps({**state, "step": step}, indent=1))
    prune(run, keep)


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what an interrupted save left."""
    for old in (*_checkpoints(run)[: -keep or None], *(run / "checkpoints").glob("step_*.part")):
        shutil.rmtree(old)


def tidy(config: Experiment) -> None:
    """Leave of a finished run what `keep_checkpoints` says; 0 is the final model only. Safe to repeat."""
    prune(config.folder, config.keep_checkpoints)
    if config.keep_checkpoints == 0:
        for scratch in ("best", "predictions/validation"):
            shutil.rmtree(config.folder / scratch, ignore_errors=True)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return next(reversed(_checkpoints(run)), None)


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step_????????"))


def read_state(checkpoint: Path) -> dict:
    """What `save_checkpoint` was given as state, with `step`; raises InputError when it is damaged."""
    try:
        return json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(checkpoint, STATE, error) from None


def read_group(checkpoint: Path, group: str) -> dict[str, Tensor]:
    """The tensors of one group of a checkpoint; raises InputError when they are damaged."""
    try:
        return load_file(checkpoint / f"{group}.safetensors")
    except (OSError, SafetensorError) as error:
        raise _damaged(checkpoint, f"{group}.safetensors", error) from None


def _damaged(checkpoint: Path, name: str, error: Exception) -> InputError:
    return InputError(
        f"{checkpoint}/{name} cannot be read ({error}); delete {checkpoint} to fall back to an older checkpoint"
    )


# What is saved


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, `<parameter number>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": torch.as_tensor(v) for number, values in state.items() for name, v in values.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; the groups with their rates stay as they are."""
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


class Ema:
    """Exponential moving averages of the floating-point weights and buffers; counters are copied.

    Args:
        detector: the model to follow.
        decay: share of the old average kept at each step, 0..1.
    """

    def __init__(self, detector: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in own_weights(detector).items()}

    @torch.no_grad()
    def update(self, detector: nn.Module) -> None:
        """Move the averages towards the weights as they are now."""
        averages, values = [], []
        for name, value in own_weights(detector).items():
            if value.is_floating_point():
                averages.append(self.weights[name])
                values.append(value)
            else:
                self.weights[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - self.decay)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Go on from saved averages."""
        for name, value in weights.items():
            self.weights[name].copy_(value)

    @contextlib.contextmanager
    def swapped_in(self, detector: nn.Module):
        """Within the block the detector holds the averages; its own weights come back afterwards."""
        own = {name: value.detach().clone() for name, value in own_weights(detector).items()}
        detector.load_state_dict(self.weights, strict=False)
        try:
            yield
        finally:
            detector.load_state_dict(own, strict=False)


# What must be as it was

CHANGES = {
    "images": "{then} training images then, {now} now; restore the data",
    "data": "the {images} training images have other ids, prompts or scores now, or another order; restore the data",
    "contents": "files of the {images} training images have other sizes now, or the run behind pseudo_labels chose "
    "another setting; restore the data",
    "precision": "{then} then, {now} now; go on where mixed_precision gives the same (auto follows the GPU)",
    "base": "the frozen weights of the encoder are others now; restore what checkpoint: {checkpoint} was",
}


def circumstances(data: DistortionData, precision: str, base: str = "") -> dict:
    """What a checkpoint notes of the run's data and precision.

    `images`: how many; `data`: a hash of their ids, prompts and scores in order; `contents`: a hash of the sizes of
    their image and label files and of what counts of a predicted label; `precision`; `base`: `DistortionDetector.base`.
    Data may be moved, since neither their place nor their date counts. Files of the same size are taken for the same.
    """
    labels, contents = hashlib.sha256(), hashlib.sha256()
    for entry in data.entries:
        labels.update(json.dumps([entry.id, entry.prompt, entry.score]).encode())
        setting = dataclasses.astuple(entry.setting) if entry.setting else None
        contents.update(json.dumps([_size(entry.image), _size(entry.heatmap), setting]).encode())
    hashes = {"data": labels.hexdigest()[:16], "contents": contents.hexdigest()[:16]}
    return {"images": len(data), **hashes, "precision": precision, "base": base}


def _size(path: str) -> int:
    """In bytes; -1 for what is not there, which is an error only when it is to be read."""
    return Path(path).stat().st_size if path and Path(path).is_file() else -1


def refuse_changes(checkpoint: Path, now: dict, starting_point: str) -> None:
    """Raise InputError when the `circumstances` are not those that the checkpoint notes.

    The order of images and the learning rates follow from the number of images; a loss scaler belongs to fp16.
    What checkpoints of older versions did not note passes.

    Args:
        starting_point: the run's parameter `checkpoint`, for the sentence.
    """
    state = read_state(checkpoint)
    then = {**now, **({"precision": "fp16"} if state["scaler"] else {}), **state}
    changed = next((name for name in CHANGES if then[name] != now[name]), None)
    if changed:
        values = {"images": now["images"], "checkpoint": starting_point}
        values |= {key: str(v[changed]).replace("no", "fp32") for key, v in (("then", then), ("now", now))}
        problem = CHANGES[changed].format(**values)
        raise InputError(f"{checkpoint} cannot be gone on from: {problem}, or give another experiment_name")
