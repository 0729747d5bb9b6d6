"""What a process trains on: device, precision and the other processes."""

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from lib.config import Experiment
from lib.distributed import clock, precision
from lib.errors import InputError

OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # as torch and CUDA's libraries say it


def make_accelerator(config: Experiment) -> Accelerator:
    """Device, precision and processes.

    Raises InputError when another number of processes was started than the recipe counts on, since that would change
    its batch.
    """
    wanted, cuda = precision(config), torch.cuda.is_available()
    # Accelerate keeps the first precision of a process for ever; a notebook may train twice.
    AcceleratorState._reset_state()
    patience = timedelta(minutes=config.process_timeout)
    meet(patience)
    handlers = [InitProcessGroupKwargs(timeout=patience)]
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


def meet(patience: timedelta) -> None:
    """Wait for the other ranks of processes that were started by hand or by a scheduler, and open the process group.

    torch would wait where no signal gets through, and in silence. torchrun starts ranks that know each other.
    Raises InputError when one has not come in time.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world == 1 or "TORCHELASTIC_RUN_ID" in os.environ or dist.is_initialized():
        return
    host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    store, missing, waited, announced = None, list(range(world)), 0.0, False
    began = time.monotonic()
    while missing:
        where = f"rank {rank} of {world} waits for rank {', '.join(map(str, missing))} at {host}:{port}"
        if waited > patience.total_seconds():
            raise InputError(
                f"{where}, and none came in {clock(waited)} (process_timeout); start all {world} processes with the "
                "same MASTER_ADDR and MASTER_PORT, or unset RANK and WORLD_SIZE"
            )
        if waited > 5 and not announced:
            print(f"{where}, up to {clock(patience.total_seconds())}", flush=True)
            announced = True
        try:
            store = store or dist.TCPStore(host, port, world, rank == 0, timedelta(seconds=1), wait_for_workers=False)
            store.set(f"rank {rank}", "here")
            missing = [other for other in range(world) if not store.check([f"rank {other}"])]
        except dist.DistError as error:
            if rank == 0:
                raise InputError(f"{host}:{port} cannot be opened ({error}); choose another MASTER_PORT") from None
            missing = [0]  # which holds the store
        time.sleep(0.1 if missing else 0)
        waited = time.monotonic() - began
    store.set_timeout(patience)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)


@contextlib.contextmanager
def explaining_memory_errors(remedy: str) -> Iterator[None]:
    """Raise an InputError with the remedy where memory runs out in the block; other errors pass."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; CUDA's libraries raise others
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        raise InputError(f"out of memory {remedy}") from None
