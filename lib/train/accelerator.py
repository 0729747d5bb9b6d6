"""What a process trains on: device, precision and the other processes."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from lib.config import Experiment
from lib.distributed import precision
from lib.errors import InputError

OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # as torch and CUDA's libraries say it


def make_accelerator(config: Experiment) -> Accelerator:
    """Device, precision and processes.

    Raises InputError when another number of processes was started than the recipe counts on, since that would change
    its batch, and for a process that would wait for others without torchrun, where no signal reaches it.
    """
    wanted, cuda = precision(config), torch.cuda.is_available()
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1" and "TORCHELASTIC_RUN_ID" not in os.environ:
        raise InputError(
            f"WORLD_SIZE is {world}, but torchrun has not started this process; start all {world} by torchrun (see "
            "data_cards/recipes.md), or unset WORLD_SIZE and RANK to train in this one"
        )
    # Accelerate keeps the first precision of a process for ever; a notebook may train twice.
    AcceleratorState._reset_state()
    handlers = [InitProcessGroupKwargs(timeout=timedelta(minutes=config.process_timeout))]
    # Bucket views: no second copy of all gradients. Buffers are the same everywhere, since norms see all ranks' rows.
    handlers.append(DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False))
    accelerator = Accelerator(mixed_precision=wanted, cpu=not cuda, kwargs_handlers=handlers)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = cuda and not config.deterministic
    if cuda and wanted == "no":
        torch.set_float32_matmul_precision("high")  # TF32, as convolutions use by default
    if accelerator.num_processes != config.num_processes:
        raise InputError(
            f"num_processes: {config.num_processes}, but {accelerator.num_processes} were started; start as many with "
            "lib.train.launch or torchrun (of all nodes together), or correct the parameter"
        )
    return accelerator


@contextlib.contextmanager
def explaining_memory_errors(remedy: str) -> Iterator[None]:
    """Raise an InputError with the remedy where memory runs out in the block; other errors pass."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; CUDA's libraries raise others
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        raise InputError(f"out of memory {remedy}") from None
