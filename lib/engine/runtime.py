"""What surrounds a training: device and precision, optimizer groups, the run's folder, signals, scarce memory."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import nn

from lib.config import Experiment, read_yaml
from lib.engine.fsdp import read_layout
from lib.errors import InputError
from lib.files import replacing

# May differ between a run and its continuation without changing what is learned. Checkpoints are whole, so a run may
# go on sharded or not.
FREE_TO_CHANGE = {
    "experiment_name", "runs", "num_workers", "log_iter", "keep_checkpoints", "save_iter", "batch_size_val",
    "gradient_checkpointing", "nonfinite", "wandb", "accelerate_config",
}  # fmt: skip
KNOWN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
LOCK = ".lock"  # in a run's folder, held by the process that trains into it
SAME_REQUEST = 3.0  # seconds: torchrun and some schedulers send a stop signal twice


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGINT: the run was saved and can go on."""

    def _render_traceback_(self):
        # As in InputError: in a notebook the sentence is the whole story.
        return [str(self)]


def precision(config: Experiment) -> str:
    """no, bf16 or fp16: `auto` takes bf16 where the GPU has it, else fp16, and fp32 on a CPU.

    Raises InputError for fp16 without a GPU.
    """
    cuda = torch.cuda.is_available()
    wanted = "fp16" if config.fp16 else config.mixed_precision
    if wanted == "fp16" and not cuda:
        raise InputError("fp16 needs a GPU; on this machine set mixed_precision: auto (or bf16) and fp16: false")
    if wanted == "auto":
        return ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if cuda else "no"
    return wanted


def make_accelerator(config: Experiment) -> Accelerator:
    """Device, precision and processes.

    Raises InputError when another number of processes was started than the recipe counts on, since that would change
    its batch, and when they are to shard in a way that is not supported or not the recipe's.
    """
    wanted = precision(config)
    read_layout(config, wanted)
    # Set by `accelerate launch`. Accelerate must not shard as well: `lib.engine.fsdp` does, from the same file.
    if os.environ.pop("ACCELERATE_USE_FSDP", "false") == "true" and not config.accelerate_config:
        raise InputError("accelerate launch was told to shard; name its file in the parameter accelerate_config too")
    # Accelerate keeps the first precision of a process for ever; a notebook may train twice.
    AcceleratorState._reset_state()
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # no second copy of all gradients
    accelerator = Accelerator(mixed_precision=wanted, cpu=not torch.cuda.is_available(), kwargs_handlers=[ddp])
    if accelerator.distributed_type not in KNOWN:
        raise InputError(
            f"{accelerator.distributed_type.value} is not supported; start with torchrun, and shard with an FSDP file "
            "in the parameter accelerate_config"
        )
    if accelerator.num_processes != config.num_processes:
        raise InputError(
            f"num_processes: {config.num_processes}, but {accelerator.num_processes} were started; start as many with "
            "lib.engine.launch or torchrun (of all nodes together), or correct the parameter"
        )
    return accelerator


def default_device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_optimizer(detector: nn.Module, config: Experiment) -> torch.optim.AdamW:
    """AdamW with the recipe's two groups over what trains now: the encoder's (adapters too) and the heads'.

    `base_lr` is each group's own rate, `floor_lr` where its cosine ends.
    """
    groups = {True: [], False: []}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith("encoder.")].append(parameter)
    settings = {
        True: (config.backbone_lr_decay, config.backbone_weight_decay),
        False: (1.0, config.weight_decay),
    }
    return torch.optim.AdamW(
        [
            {
                "params": groups[k],
                "weight_decay": decay,
                "base_lr": share * config.lr,
                "floor_lr": share * config.min_lr,
            }
            for k, (share, decay) in settings.items()
            if groups[k]
        ],
        lr=config.lr,
    )


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


def trained_share(detector: nn.Module) -> dict:
    """How much trains: counts over everything, and the encoder's trained share (adapters against its own weights)."""
    sizes = [(name, p.numel(), p.requires_grad) for name, p in detector.named_parameters()]
    base = sum(n for name, n, _ in sizes if name.startswith("encoder.") and "lora_" not in name)
    trained = sum(n for name, n, trains in sizes if name.startswith("encoder.") and trains)
    return {
        "parameters": sum(n for _, n, _ in sizes),
        "trained": sum(n for _, n, trains in sizes if trains),
        "trained_share_of_encoder": round(trained / base, 4),
    }


class StopRequest:
    """Context in which SIGTERM and SIGINT are remembered instead of ending the process; true once one came.

    A second signal some seconds later raises KeyboardInterrupt. Outside the main thread signals stay as they are.

    Args:
        first: called at the first signal with its number; it must not print, since it may interrupt a print.
    """

    requested = ""  # of the class: the signal that an open context has received, for whoever shows the progress

    def __init__(self, first: Callable[[int], None] = lambda number: None):
        self.first, self.name, self.since, self.before = first, "", 0.0, {}

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.before = {n: signal.signal(n, self._received) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        StopRequest.requested = ""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _received(self, number: int, _frame) -> None:
        if not self.name:
            self.name, self.since = signal.Signals(number).name, time.monotonic()
            StopRequest.requested = self.name
            self.first(number)
        elif time.monotonic() - self.since > SAME_REQUEST:
            raise KeyboardInterrupt


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


def quiet_libraries() -> None:
    """Silence what libraries tell at every start and nobody can act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a warning at every fork of a data worker
    warnings.filterwarnings("ignore", message=r"\s*Grad strides do not match bucket view strides")  # depthwise
