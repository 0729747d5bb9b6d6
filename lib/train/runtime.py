"""What surrounds a training: device and precision, processes, optimizer groups."""

import os
import warnings

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import nn

from lib.config import Experiment
from lib.errors import InputError
from lib.train.fsdp import read_layout

KNOWN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


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


def make_accelerator(config: Experiment) -> Accelerator:
    """Device, precision and processes.

    Raises InputError when another number of processes was started than the recipe counts on, since that would change
    its batch, and when they are to shard in a way that is not supported or not the recipe's.
    """
    wanted = precision(config)
    read_layout(config, wanted)
    # Set by `accelerate launch`. Accelerate must not shard as well: `lib.train.fsdp` does, from the same file.
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
            "lib.train.launch or torchrun (of all nodes together), or correct the parameter"
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


def quiet_libraries() -> None:
    """Silence what libraries tell at every start and nobody can act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a warning at every fork of a data worker
    warnings.filterwarnings("ignore", message=r"\s*Grad strides do not match bucket view strides")  # depthwise
