"""Checkpoints of a run: safetensors and JSON, written aside and renamed; a torn one falls back to the one before."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lib.errors import InputError
from lib.files import replacing
from lib.train.fsdp import spread_as

STATE = "state.json"


def save_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict, keep: int) -> Path:
    """Write `folder/step_<n>/<group>.safetensors` and `state.json`, then drop all but the newest `keep`."""
    with written_aside(_place(folder, step)) as part:
        for group, values in tensors.items():
            values = {name: value.detach().cpu().contiguous() for name, value in values.items()}
            save_file(values, part / f"{group}.safetensors")
        sizes = {path.name: path.stat().st_size for path in sorted(part.iterdir())}
        (part / STATE).write_text(json.dumps({**state, "step": step, "files": sizes}, indent=1))
    prune(folder, keep)
    return _place(folder, step)


def amend_state(folder: Path, step: int, values: dict) -> None:
    """Change values of a checkpoint's state; whoever is killed meanwhile leaves the old ones."""
    path = _place(folder, step)
    with replacing(path / STATE) as part:
        part.write_text(json.dumps({**read_state(path), **values}, indent=1))
        _sync(part)


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


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what an interrupted save left."""
    for old in sorted(folder.glob("step_????????"))[: -keep or None]:
        shutil.rmtree(old)
    for remains in (*folder.glob("step_*.part"), *folder.glob("step_*.torn")):
        shutil.rmtree(remains)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None. Torn ones are renamed to `.torn`, with a line that says so.

    Under its name a torn one would later count among those that `prune` keeps; the next save deletes it. Raises
    InputError, and changes nothing, when a checkpoint cannot be looked at: a disk that fails for a moment tears none.
    """
    for path in sorted(folder.glob("step_????????"), reverse=True):
        try:
            problem = _problem(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error}); mend that and run again") from None
        if problem is None:
            return path
        print(f"Checkpoint {path} is not whole ({problem}); falling back to the one before.", flush=True)
        torn = path.with_name(f"{path.name}.torn")
        shutil.rmtree(torn, ignore_errors=True)
        path.rename(torn)
    return None


def _problem(path: Path) -> str | None:
    """What is missing of a checkpoint; OSError when that cannot be told."""
    try:
        for name, size in read_state(path)["files"].items():
            found = (path / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes of {size}"
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None


def read_state(path: Path) -> dict:
    """What `save_checkpoint` was given as state, with `step`."""
    return json.loads((path / STATE).read_text())


def read_group(path: Path, group: str) -> dict[str, Tensor]:
    """The tensors of one group of a checkpoint."""
    try:
        with safe_open(path / f"{group}.safetensors", framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}/{group}.safetensors cannot be read ({error}); delete {path} to fall back to an older checkpoint"
        ) from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, `<parameter number>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": torch.as_tensor(v) for number, values in state.items() for name, v in values.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, sharded as the parameters are; the groups stay as they are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = spread_as(value, parameters[int(number)])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _place(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
