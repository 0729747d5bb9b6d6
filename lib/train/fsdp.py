"""Sharded training: weights, gradients and optimizer state spread over the processes by torch's FSDP2.

A file of `accelerate config` says how. Accelerate itself shards on GPUs only; `fully_shard` is therefore applied
here, and the gloo processes of a CPU take the same way as GPUs.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lib.config import Experiment, read_yaml
from lib.distributed import rank, world_size
from lib.errors import InputError

# The only value that can be followed; several nodes and a choice of GPUs are told to torchrun.
TOP = {
    "distributed_type": "FSDP", "compute_environment": "LOCAL_MACHINE", "num_machines": 1, "machine_rank": 0,
    "gpu_ids": "all", "use_cpu": False, "enable_cpu_affinity": False, "debug": False,
}  # fmt: skip
FSDP = {
    "fsdp_version": 2,
    "fsdp_offload_params": False,
    "fsdp_state_dict_type": "FULL_STATE_DICT",  # checkpoints are whole
    "fsdp_cpu_ram_efficient_loading": False,  # every process reads the checkpoint
    "fsdp_activation_checkpointing": False,  # the parameter gradient_checkpointing does that
}
# `accelerate config` writes these in any case; they are about several nodes or TPUs, which are not asked for.
IDLE = ("main_training_function", "rdzv_backend", "same_network", "downcast_bf16")
IDLE += ("tpu_env", "tpu_use_cluster", "tpu_use_sudo")
# Followed: see `Layout`, and `mixed_precision` and `num_processes`, which must be those of the run.
OWN = ("mixed_precision", "num_processes", "fsdp_config")
LAYOUT = ("fsdp_auto_wrap_policy", "fsdp_transformer_layer_cls_to_wrap", "fsdp_reshard_after_forward")


@dataclass(frozen=True)
class Layout:
    """Which weights are gathered together, and for how long."""

    layers: tuple[str, ...]  # classes whose instances are gathered one by one; the rest at the start of a step
    reshard: bool  # let a layer's weights go after its forward pass and gather them again for its backward pass


def read_layout(config: Experiment, precision: str) -> Layout | None:
    """The layout that the file `config.accelerate_config` asks for; None without one.

    Args:
        precision: no, bf16 or fp16, as the run computes.
    Raises InputError that lists all that is not supported: DeepSpeed, FSDP version 1, what contradicts the run, ...
    """
    path = config.accelerate_config
    if not path:
        return None
    if config.num_processes == 1:
        raise InputError(f"accelerate_config: {path} shards over processes; raise num_processes or leave it empty")
    values = read_yaml(path)
    fsdp = values.get("fsdp_config") or {}
    if not isinstance(fsdp, dict):
        raise InputError(f"accelerate_config: {path}: fsdp_config: {fsdp} must hold names and values; write it again")
    if (kind := values.get("distributed_type")) != TOP["distributed_type"]:
        raise InputError(
            f"accelerate_config: {path} asks for distributed_type: {kind}; only FSDP of version 2 is supported: write "
            "another file with accelerate config, or leave the parameter empty and every process holds the whole model"
        )
    problems = _unlike(values, TOP, (*OWN, *IDLE)) + _unlike({"fsdp_version": 1, **fsdp}, FSDP, LAYOUT)
    problems += _contradictions(values, {"mixed_precision": precision, "num_processes": config.num_processes})
    if problems:
        raise InputError(f"accelerate_config: {path}: {'; '.join(problems)}")
    return _layout(path, fsdp)


def _unlike(values: dict, expected: dict, others: tuple[str, ...]) -> list[str]:
    """What of `values` is neither as expected nor among the others that may have any value."""
    known = {**dict.fromkeys(others), **expected}
    return [f"{key} is not supported: remove it" for key, value in values.items() if key not in known and value] + [
        f"{key}: {values[key]} is not supported: set {str(value).lower() if value is False else value}"
        for key, value in expected.items()
        if key in values and values[key] != value
    ]


def _contradictions(values: dict, run: dict) -> list[str]:
    return [
        f"{key} is {values[key]} there and {value} in the run: make them equal or delete the line"
        for key, value in run.items()
        if key in values and (values[key] or "no") != value  # YAML reads a bare no as false
    ]


def _layout(path: str, fsdp: dict) -> Layout:
    policy = fsdp.get("fsdp_auto_wrap_policy", "NO_WRAP")
    names = str(fsdp.get("fsdp_transformer_layer_cls_to_wrap") or "")
    layers = tuple(name.strip() for name in names.split(",") if name.strip())
    if (policy, bool(layers)) not in (("NO_WRAP", False), ("TRANSFORMER_BASED_WRAP", True)):
        raise InputError(
            f"accelerate_config: {path}: fsdp_auto_wrap_policy is {policy} with the layers {names!r}; use "
            "TRANSFORMER_BASED_WRAP with fsdp_transformer_layer_cls_to_wrap: Florence2VisionBlock,BartEncoderLayer"
        )
    reshard = fsdp.get("fsdp_reshard_after_forward", True)
    if not isinstance(reshard, bool):
        raise InputError(f"accelerate_config: {path}: fsdp_reshard_after_forward: {reshard!r} must be true or false")
    return Layout(layers, reshard)


def shard(detector: nn.Module, layout: Layout) -> None:
    """Spread the parameters over the processes, in place; buffers stay whole. All ranks must hold equal weights.

    Parameters stay float32 and are gathered as such; autocast lowers the precision as it does without sharding, so
    both compute the same. Raises InputError when a layer of the layout is not in the model.
    """
    mesh = init_device_mesh(detector.device.type, (world_size(),))
    kinds = {name: [m for m in detector.modules() if type(m).__name__ == name] for name in layout.layers}
    unmatched = sorted(name for name, found in kinds.items() if not found)
    if unmatched:
        raise InputError(
            f"accelerate_config: fsdp_transformer_layer_cls_to_wrap: {', '.join(unmatched)} is no layer of the model; "
            "Florence-2 has Florence2VisionBlock and BartEncoderLayer"
        )
    # Of the vision blocks; nothing is written into what they return.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    for module in [module for found in kinds.values() for module in found]:
        fully_shard(module, mesh=mesh, reshard_after_forward=layout.reshard)
    fully_shard(detector, mesh=mesh)


def whole(value: Tensor) -> Tensor:
    """A tensor with the parts of all ranks, which must all call it; one that is not sharded as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_on_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors in rank 0's own memory, an empty dict elsewhere; all ranks must call it."""
    found = {}
    for name, value in tensors.items():
        value = whole(value)  # one at a time: the device need not hold them all
        if rank() == 0:
            found[name] = value.detach().cpu()
    return found


def own_part(value: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; another tensor as it is."""
    return value.to_local() if isinstance(value, DTensor) else value


def spread_as(value: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, sharded as `pattern` is, if it is and has the same shape."""
    if not isinstance(pattern, DTensor) or value.shape != pattern.shape:
        return value
    # Without a source rank: every process has read the same file, nothing needs to be sent.
    value = value.to(pattern.device)
    return distribute_tensor(value, pattern.device_mesh, pattern.placements, src_data_rank=None)


@torch.no_grad()
def copy_whole(tensors: dict[str, Tensor], target: nn.Module) -> None:
    """Copy sharded weights into the plain model `target`; all ranks must call it."""
    into = target.state_dict()
    for name, value in tensors.items():
        into[name].copy_(whole(value))
