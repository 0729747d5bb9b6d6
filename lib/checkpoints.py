"""Checkpoints of a run: written aside and renamed, safetensors and JSON only, a torn one falls back to the one before."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lib.errors import InputError

STATE = "state.json"


def save_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict, keep: int) -> Path:
    """Write `folder/step_<n>/<group>.safetensors` and `state.json`, then drop all but the newest `keep`."""
    target, part = folder / f"step_{step:08d}", folder / f"step_{step:08d}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for group, values in tensors.items():
        save_file({name: value.detach().cpu().contiguous() for name, value in values.items()}, part / f"{group}.safetensors")
    sizes = {path.name: path.stat().st_size for path in sorted(part.iterdir())}
    (part / STATE).write_text(json.dumps({**state, "step": step, "files": sizes}, indent=1))
    for path in part.iterdir():
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    _sync(folder)
    prune(folder, keep)
    return target


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what an interrupted save left."""
    for old in sorted(folder.glob("step_????????"))[: -keep or None]:
        shutil.rmtree(old)
    for part in folder.glob("step_*.part"):
        shutil.rmtree(part)


def latest_checkpoint(folder: Path) -> tuple[Path, dict] | None:
    """The newest whole checkpoint and its state, or None. A torn one is passed over, with a line that says so."""
    for path in sorted(folder.glob("step_????????"), reverse=True):
        try:
            state = json.loads((path / STATE).read_text())
            for name, size in state["files"].items():
                if (path / name).stat().st_size != size:
                    raise ValueError(f"{name} is not {size} bytes long")
            return path, state
        except (OSError, ValueError, KeyError) as error:
            print(f"Checkpoint {path} is not whole ({error}); falling back to the one before.", flush=True)
    return None


def read_group(path: Path, group: str) -> dict[str, Tensor]:
    """The tensors of one group of a checkpoint."""
    try:
        with safe_open(path / f"{group}.safetensors", framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    except Exception as error:  # safetensors raises its own type for a torn file
        raise InputError(f"{path}/{group}.safetensors cannot be read ({error}); delete {path} to fall back to an older checkpoint") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, `<parameter number>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": torch.as_tensor(value) for number, values in state.items() for name, value in values.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; the groups stay as they are."""
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
