"""Weights on disk: safetensors written whole, compared with the model by name, shape and value before use."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib.errors import InputError
from lib.files import replacing, what_it_is
from lib.model.lora import own_weights

NOTE = "detector.json"  # of a saved detector, written last: a folder without it is no whole model


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a weights file, whole or not at all; raises OSError when that is not possible."""
    with replacing(path) as part:
        part.touch()
        mode = part.stat().st_mode
        try:
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part)
        except SafetensorError as error:  # what a full disk becomes
            raise OSError(0, str(error)) from None
        part.chmod(mode)  # safetensors lets nobody else read, whatever the umask says


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a weights file; InputError when it is missing or torn."""
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own type for a torn file
        known = what_it_is(path) or " Copy it again or train again."
        raise InputError(f"{path} is not a readable safetensors file ({error}).{known}") from None


def sha256_of(folder: Path, *patterns: str) -> dict[str, str]:
    """{path within the folder: SHA-256 of its bytes, as `sha256sum` prints it} of the files that match."""
    found = {}
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        with open(path, "rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def refuse_changed(folder: Path, sha256: dict[str, str], remedy: str) -> None:
    """InputError with the remedy unless all files are there as they were when `sha256_of` gave what was kept."""
    try:
        now = sha256_of(folder, *sha256)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}); {remedy}") from None
    if changed := [folder / name for name in sha256 if now.get(name) != sha256[name]]:
        known = what_it_is(changed[0])
        raise InputError(f"{changed[0]} is missing or not what was saved there.{known} Mend it: {remedy}")


def digest(tensors: dict[str, Tensor], settings: str = "") -> str:
    """SHA-256 of a text, names and values; it takes about a second for a GB."""
    sha256 = hashlib.sha256(settings.encode())
    for name, value in tensors.items():
        sha256.update(name.encode())
        sha256.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()


def load_weights(detector: nn.Module, weights: dict[str, Tensor], source, partial: str = "") -> None:
    """Load strictly: names, shapes and kinds of numbers must be the model's, and all values finite; else InputError.

    All that the run owns must be there: with LoRA that leaves out the base as it was. Names under `partial` may
    be absent.
    """
    refuse_nonfinite(weights, source)
    try:
        absent, unknown = detector.load_state_dict(weights, strict=False)
        needed = [name for name in own_weights(detector) if not (partial and name.startswith(partial))]
        wrong = [f"{name} is not in the file" for name in needed if name in absent]
        wrong += [f"{name} is not in the model" for name in unknown]
        kinds = {name: value.is_floating_point() for name, value in detector.state_dict().items()}
        # torch would convert whole numbers into floats in silence; what was meant is lost.
        wrong += [f"{k} is {v.dtype}" for k, v in weights.items() if kinds.get(k) not in (None, v.is_floating_point())]
    except RuntimeError as error:  # other shapes; its first line is a title
        wrong = [line.strip() for line in str(error).splitlines()[1:]]
    if wrong:
        raise InputError(
            f"{source} holds weights of another architecture ({'; '.join(wrong[:3])}); check the parameters of the run"
        )


def refuse_nonfinite(weights: dict[str, Tensor], source) -> None:
    """InputError when a value is NaN or infinite: the training diverged or the file is damaged."""
    wrong = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if wrong:
        raise InputError(
            f"{source} holds weights that are not finite ({wrong[0]} and {len(wrong) - 1} more): its training "
            "diverged, or the file is damaged; train again with a lower lr, or copy it again"
        )
