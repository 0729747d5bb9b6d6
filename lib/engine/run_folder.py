"""A run's folder: begun with its parameters, trained into by one process at a time, told how scarce memory is."""

import contextlib
import errno
import fcntl
import json
import time
from pathlib import Path

from lib.config import Experiment, read_yaml
from lib.errors import InputError
from lib.files import replacing

# May differ between a run and its continuation without changing what is learned. Checkpoints are whole, so a run may
# go on sharded or not.
FREE_TO_CHANGE = {
    "experiment_name", "runs", "num_workers", "log_iter", "keep_checkpoints", "save_iter", "batch_size_val",
    "gradient_checkpointing", "nonfinite", "wandb", "accelerate_config",
}  # fmt: skip
LOCK = ".lock"  # in a run's folder, held by the process that trains into it


def open_folder(config: Experiment) -> Path:
    """Create the run's folder with its config.yaml.

    Raises InputError when it cannot be written, or holds a run begun with other parameters; those are shown.
    """
    folder = config.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}); choose another folder with the parameter runs"
        ) from None
    if (folder / "config.yaml").is_file():
        _refuse_changes(folder, read_yaml(folder / "config.yaml"), config.to_dict())
    with replacing(folder / "config.yaml") as part:
        config.save(part)
    return folder


def _refuse_changes(folder: Path, before: dict, now: dict) -> None:
    before = {**Experiment().to_dict(), **before}  # a parameter that is newer than the run had its default
    changed = [
        f"{name}: {before[name]!r} then, {now[name]!r} now"
        for name in now
        if name not in FREE_TO_CHANGE and before[name] != now[name]
    ]
    if changed:
        raise InputError(
            f"{folder} was begun with other parameters ({'; '.join(changed)}); restore them, or give another "
            "experiment_name"
        )


@contextlib.contextmanager
def sole_owner(folder: Path):
    """Within the block no other process may train into this folder; a killed owner leaves no lock behind."""
    with open(folder / LOCK, "w") as file:
        for patience in (0.1, 0.1, 0):  # `is_being_trained` holds it for an instant
            if _locked(file):
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


def _locked(file, kind: int = fcntl.LOCK_EX) -> bool:
    """Take the lock, which ends with the file; False when another process has it. Some file systems have no locks."""
    try:
        # lockf, not flock: data workers forked from a killed trainer must not go on holding the lock.
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def read_splits(folder: Path) -> dict[str, int]:
    """{stage: into how many parts its micro-batches are cut}, as `cut_micro_batches` left it; mostly empty."""
    path = folder / "micro_batches.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def cut_micro_batches(folder: Path, stage: str, micro_batch: int, splits: int) -> None:
    """Note that this stage ran out of memory with `micro_batch` images at a time: half as many from now on.

    The optimizer step keeps its images, the accumulation grows. Raises InputError when one image is already too much.
    """
    if micro_batch == 1:
        raise InputError(
            "out of memory with one image at a time; set gradient_checkpointing: true, or begin another "
            "experiment_name with a lower input_size or a higher mask_stride"
        )
    with replacing(folder / "micro_batches.json") as part:
        part.write_text(json.dumps({**read_splits(folder), stage: 2 * splits}))
