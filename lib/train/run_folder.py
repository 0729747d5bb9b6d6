"""A run's folder: begun with its parameters, trained into by one process at a time, told how scarce memory is."""

import contextlib
import errno
import fcntl
import json
import time
from pathlib import Path

from lib.config import Experiment, free_to_change, read_yaml
from lib.data.held_out import RECORD
from lib.errors import InputError
from lib.files import replacing, writing

LOCK = ".lock"  # in a run's folder, held by the process that trains into it
SPLITS = "micro_batches.json"


def open_folder(config: Experiment) -> Path:
    """Create the run's folder with its config.yaml; not to be called by a process that is its `sole_owner`.

    Raises InputError when it cannot be written, or holds a run begun with other parameters; those are shown.
    """
    folder = config.folder
    with writing(folder, "free space, or choose another folder with the parameter runs"):
        folder.mkdir(parents=True, exist_ok=True)
        changed, begun = _changes(folder / "config.yaml", config), _begun(folder)
        if changed and begun:
            raise InputError(
                f"{folder} was begun with other parameters ({'; '.join(changed)}); restore them, or give another "
                "experiment_name"
            )
        if changed:
            (folder / SPLITS).unlink(missing_ok=True)
        if not begun:  # the data may have been prepared anew since
            (folder / RECORD).unlink(missing_ok=True)
        config.save(folder / "config.yaml")
    return folder


def _changes(path: Path, config: Experiment) -> list[str]:
    """What differs from the parameters in `path`, if it exists, and decides what is learned."""
    if not path.is_file():
        return []
    now = config.to_dict()
    free = free_to_change(finished=(path.parent / "finished.json").is_file())
    before = {**Experiment().to_dict(), **read_yaml(path)}  # a parameter that is newer than the run had its default
    return [
        f"{name}: {before[name]!r} then, {now[name]!r} now"
        for name in now
        if name not in free and before[name] != now[name]
    ]


def _begun(folder: Path) -> bool:
    """Whether there is something to lose: a model, a checkpoint, a record, or a training that has just begun."""
    metrics = folder / "metrics.jsonl"
    recorded = metrics.is_file() and metrics.stat().st_size > 0
    saved = (folder / "finished.json").is_file() or any((folder / "checkpoints").glob("step_????????"))
    return recorded or saved or is_being_trained(folder)


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
    path = folder / SPLITS
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
    with replacing(folder / SPLITS) as part:
        part.write_text(json.dumps({**read_splits(folder), stage: 2 * splits}))
