"""A run's folder and its checkpoints: begun, saved whole or not at all, gone on from only as it was."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import lib
from lib.config import FREE, Experiment
from lib.data.dataset import DistortionData
from lib.data.splits import RECORD
from lib.errors import InputError
from lib.files import locked, replacing, write_text, writing
from lib.model.lora import own_weights
from lib.model.weights import NOTE, refuse_changed, sha256_of, write_safetensors
from lib.records import read_record
from lib.train.schedule import trained_share

LOCK = ".lock"  # in a run's folder, held by the process that trains into it
STATE = "state.json"
FINISHED = "finished.json"  # in a run's folder, written after the model


# The run's folder


@contextlib.contextmanager
def opened_folder(config: Experiment) -> Iterator[Path]:
    """The run's folder with its config.yaml, which no other process may train into within the block.

    A killed process leaves no lock behind. Raises InputError when the folder cannot be written, is being trained, or
    holds a run begun with other parameters; those are shown.
    """
    folder, remedy = config.folder, "free space, or choose another folder with the parameter runs"
    in_use = f"{folder} is being trained by another process; wait for it, stop it, or give another experiment_name"
    with contextlib.ExitStack() as stack:
        with writing(folder, remedy):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / LOCK, in_use))
            _note_parameters(config)
        yield folder


def _note_parameters(config: Experiment) -> None:
    """Write config.yaml, unless there is something to lose that was begun with other parameters."""
    folder, saved = config.folder, config.folder / "config.yaml"
    metrics = folder / "metrics.jsonl"
    recorded = metrics.is_file() and metrics.stat().st_size > 0
    if recorded or (folder / FINISHED).is_file() or _checkpoints(folder):
        now = config.to_dict()
        then = Experiment.from_yaml(saved).to_dict() if saved.is_file() else now
        # Until the run has ended its data may be moved: checkpoints tell whether they are the same.
        free = FREE if (folder / FINISHED).is_file() else FREE | {"data_path"}
        changed = [f"{k}: {then[k]!r} then, {now[k]!r} now" for k in now if k not in free and then[k] != now[k]]
        if changed:
            raise InputError(
                f"{folder} was begun with other parameters ({'; '.join(changed)}); restore them, or give another "
                "experiment_name"
            )
    else:  # the data may have been prepared anew since
        (folder / RECORD).unlink(missing_ok=True)
    config.save(saved)


def is_finished(folder: Path) -> bool:
    """Whether a run has ended; raises InputError when its record or its model is damaged."""
    if (folder / FINISHED).is_file():
        read_finished(folder)
        if not (folder / "model" / NOTE).is_file():
            problem = f"{folder / FINISHED} says that the run has ended, but {folder / 'model'} holds no {NOTE}"
            raise InputError(f"{problem}; copy the run again, or delete {folder / FINISHED} to go on")
        return True
    return False


def write_finished(folder: Path, detector: nn.Module, **facts) -> None:
    """Write `finished.json`: the facts, how much of the detector trains, and the software that it was made with."""
    versions = {"python": platform.python_version(), "kit": lib.__version__}
    versions |= {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")}
    facts |= {**trained_share(detector), "versions": versions}
    write_text(folder / FINISHED, json.dumps(facts, indent=1))


def read_finished(folder) -> dict:
    """The `finished.json` of a run: `steps`, `seconds`, `images`, what trained; InputError when it has not ended."""
    path = Path(folder) / FINISHED
    if not path.exists():
        raise InputError(f"{path} does not exist: the training has not ended; run notebooks/2_train.ipynb again")
    remedy = f"copy the run again, or delete {path} to go on: run notebooks/2_train.ipynb again"
    return read_record(path, {"steps": int, "seconds": float, "images": int}, remedy)


# Writing and reading


def save_checkpoint(run: Path, step: int, groups: dict[str, dict[str, Tensor]], state: dict, keep: int) -> None:
    """Write `checkpoints/step_<n>/<group>.safetensors` and `state.json`, then drop all but the newest `keep`."""
    with replacing(run / "checkpoints" / f"step_{step:08d}") as part:
        part.mkdir(parents=True)
        for group, tensors in groups.items():
            write_safetensors(part / f"{group}.safetensors", tensors)
        saved = {**state, "step": step, "files": sha256_of(part, "*")}
        (part / STATE).write_text(json.dumps(saved, indent=1))
    prune(run, keep)


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what interrupted saves left."""
    for old in (*_checkpoints(run)[: -keep or None], *run.glob("*.part/"), *run.glob("checkpoints/*.part/")):
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
    """What `save_checkpoint` was given as state, with `step` and the hashes of the `files`.

    Raises InputError when it or one of those files is not what was saved together; older versions kept no hashes.
    """
    remedy = f"delete {checkpoint} to go on from the checkpoint before it"
    state = read_record(checkpoint / STATE, {"step": int, "scaler": dict | None, "files?": dict}, remedy)
    refuse_changed(checkpoint, state.get("files", {}), remedy)
    return state


# What is saved: own_weights(detector) as `model`, and


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
        detector: the model to follow, on its device.
        decay: share of the old average kept at each step, 0..1.
    """

    def __init__(self, detector: nn.Module, decay: float):
        self.decay, followed = decay, own_weights(detector)  # to collect them at every step takes as long as a kernel
        self.weights = {name: value.detach().clone() for name, value in followed.items()}
        pairs = [(self.weights[name], value.detach()) for name, value in followed.items()]
        self.averaged = list(zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True))
        self.copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights as they are now."""
        for average, value in self.copied:
            average.copy_(value)
        averages, values = self.averaged
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

NOTED = {
    "images": "the number of training images is another one",
    "data": "the training images have other ids, prompts or scores, or another order",
    "precision": "mixed_precision gives another precision (auto follows the GPU)",
    "base": "the frozen weights of the encoder are others than checkpoint was",
}


def circumstances(data: DistortionData, precision: str, base: str = "") -> dict:
    """What a checkpoint notes of the run's data and precision, which no parameter tells.

    `images`: how many; `data`: a hash of their ids, prompts and scores in order, wherever they lie; `precision`;
    `base`: of the weights that adapters sit on.
    """
    labels = hashlib.sha256()
    for index in range(len(data)):
        entry = data.entry(index)
        labels.update(json.dumps([entry.id, entry.prompt, entry.score]).encode())
    return {"images": len(data), "data": labels.hexdigest()[:16], "precision": precision, "base": base}


def refuse_changes(checkpoint: Path, state: dict, now: dict) -> None:
    """Raise InputError when the `circumstances` are not those that the checkpoint's state notes.

    The order of images and the learning rates follow from the number of images; a loss scaler belongs to fp16.
    What checkpoints of older versions did not note passes.
    """
    for name, problem in NOTED.items():
        if (then := state.get(name, now[name])) != now[name]:
            raise InputError(
                f"{checkpoint} cannot be gone on from: {problem} ({then} then, {now[name]} now); restore it, or give "
                "another experiment_name"
            )
