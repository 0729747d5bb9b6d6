"""Weights on disk: safetensors written whole, read with every damage told, loaded strictly."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib.errors import InputError
from lib.files import replacing, what_it_is
from lib.model.lora import own_weights


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a weights file, whole or not at all; raises OSError when that is not possible."""
    with replacing(path) as part:
        try:
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part)
        except SafetensorError as error:  # what a full disk becomes
            raise OSError(0, str(error)) from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a weights file; InputError when it is missing or torn."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the model is incomplete; copy it again or train again") from None
    except Exception as error:  # safetensors raises its own type for a torn file
        known = what_it_is(path) or " Restore it or train again."
        raise InputError(f"{path} is not a readable safetensors file ({error}).{known}") from None


def digest(tensors: dict[str, Tensor]) -> str:
    """A hash of names and values; it takes about a second for a GB."""
    found = hashlib.sha256()
    for name, value in tensors.items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def load_weights(detector: nn.Module, weights: dict[str, Tensor], source, partial: str = "") -> None:
    """Load strictly; a difference in names or shapes is an InputError.

    All that the run owns must be there: with LoRA that leaves out the base as it was. Names under `partial` may
    be absent.
    """
    model, owned = detector.state_dict(), own_weights(detector)
    wrong = [
        f"{name}: {list(value.shape)} in the file, {list(model[name].shape)} in the model"
        for name, value in weights.items()
        if name in model and model[name].shape != value.shape
    ]
    wrong += [
        f"{name} is not in the file"
        for name in owned
        if name not in weights and not (partial and name.startswith(partial))
    ]
    wrong += [f"{name} is not in the model" for name in weights if name not in model]
    if wrong:
        raise InputError(
            f"{source} holds weights of another architecture ({'; '.join(wrong[:3])}); check the parameters of the run"
        )
    detector.load_state_dict(weights, strict=False)
