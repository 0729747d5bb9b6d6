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


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(values: Tensor, counts: list[int]) -> Tensor:
    """Concatenate the first axis over all ranks, in rank order; rank r brings `counts[r]` rows.

    Gradients flow into the caller's own rows only. A loss computed from the result is therefore the same on
    every rank, and the sum over ranks of the gradients is that of one process with the whole batch (DDP
    averages, so such a loss is multiplied by the world size).
    """
    if world_size() == 1:
        return values
    padded = values.new_zeros((max(counts), *values.shape[1:]))
    padded[: len(values)] = values.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    parts = [part[:count] for part, count in zip(parts, counts, strict=True)]
    parts[rank()] = values
    return torch.cat(parts)


class _Sum(torch.autograd.Function):
    """torch's own differentiable all_reduce is deprecated, and the one it names instead is private."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    backward = forward


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum over ranks, elementwise, whose gradient is summed over ranks too; the identity with one process."""
    return values if world_size() == 1 else _Sum.apply(values)


def gather_objects(value) -> list:
    """What every rank brings, in rank order; nobody goes on before all have brought it."""
    values = [value] * world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values
