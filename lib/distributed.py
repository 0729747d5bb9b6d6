"""Device, precision and other processes: what prediction and training both have to know of them."""

import torch
import torch.distributed as dist
from torch import Tensor

from lib.config import Experiment
from lib.errors import InputError


def default_device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(config: Experiment) -> str:
    """no, bf16 or fp16: `auto` takes bf16 where the GPU has it, else fp16, and fp32 on a CPU.

    Raises InputError for fp16 without a GPU.
    """
    cuda = torch.cuda.is_available()
    wanted = "fp16" if config.fp16 else config.mixed_precision
    if wanted == "fp16" and not cuda:
        raise InputError("fp16 needs a GPU; on this machine set mixed_precision: auto (or bf16) and fp16: false")
    if wanted == "auto":
        return ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16") if cuda else "no"
    return wanted


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(values: Tensor) -> Tensor:
    """Concatenate the first axis over all ranks, in rank order; each rank may bring another number of rows.

    Gradients flow into the caller's own rows only. A loss computed from the result is therefore the same on
    every rank, and the sum over ranks of the gradients is that of one process with the whole batch (DDP
    averages, so such a loss is multiplied by the world size).
    """
    if world_size() == 1:
        return values
    counts = [torch.zeros(1, dtype=torch.long, device=values.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(values)], device=values.device))
    longest = int(max(counts))
    padded = values.new_zeros((longest, *values.shape[1:]))
    padded[: len(values)] = values.detach()
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    parts = [part[: int(count)] for part, count in zip(parts, counts, strict=True)]
    parts[rank()] = values
    return torch.cat(parts)


class _SumOverRanks(torch.autograd.Function):
    """All-reduce (sum) whose backward all-reduces too: for statistics that feed every rank's own loss."""

    @staticmethod
    def forward(ctx, values):
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def sum_over_ranks(values: Tensor) -> Tensor:
    """Differentiable sum over ranks, elementwise; the identity with one process."""
    return values if world_size() == 1 else _SumOverRanks.apply(values)
