"""What surrounds a training: device and precision, optimizer groups, the run's folder, signals."""

import contextlib
import os
import signal
import threading
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from lib.config import Experiment, read_yaml
from lib.errors import InputError
from lib.heads import GlobalBatchNorm1d

# May differ between a run and its continuation without changing what is learned.
FREE_TO_CHANGE = {"experiment_name", "runs", "num_workers", "log_iter", "keep_checkpoints", "save_iter", "batch_size_val"}


def make_accelerator(config: Experiment) -> Accelerator:
    """Device and precision; `auto` takes bf16 where the GPU has it, else fp16, and fp32 on a CPU."""
    cuda = torch.cuda.is_available()
    wanted = "fp16" if config.fp16 else config.mixed_precision
    if wanted == "fp16" and not cuda:
        raise InputError("fp16 needs a GPU; on this machine set mixed_precision: auto (or bf16) and fp16: false")
    if wanted == "auto":
        wanted = ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if cuda else "no"
    return Accelerator(mixed_precision=wanted, cpu=not cuda)


def default_device() -> torch.device:
    """The first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_optimizer(detector: nn.Module, config: Experiment) -> torch.optim.AdamW:
    """AdamW with the recipe's two groups (encoder, heads) over what trains now; `base_lr` is each group's own rate."""
    groups = {True: [], False: []}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            groups[name.startswith("encoder.")].append(parameter)
    settings = {
        True: {"base_lr": config.lr * config.backbone_lr_decay, "weight_decay": config.backbone_weight_decay},
        False: {"base_lr": config.lr, "weight_decay": config.weight_decay},
    }
    return torch.optim.AdamW([{"params": groups[k], **settings[k]} for k in groups if groups[k]], lr=config.lr)


def make_folder(folder: Path) -> None:
    """Create the run's folder, or say why it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); choose another folder with the parameter runs") from None


def settle_config(config: Experiment, folder: Path) -> None:
    """Write config.yaml; refuse to go on with a run that was begun with other parameters, and show which."""
    path = folder / "config.yaml"
    if path.is_file():
        before, now = read_yaml(path), config.to_dict()
        changed = [
            f"{name}: {before.get(name)!r} then, {now[name]!r} now"
            for name in now
            if name not in FREE_TO_CHANGE and before.get(name) != now[name]
        ]
        if changed:
            raise InputError(f"{folder} was begun with other parameters ({'; '.join(changed)}); restore them, or give another experiment_name")
    config.save(path)


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


@contextlib.contextmanager
def stop_signals(handler):
    """Within the block SIGTERM and SIGINT call `handler`; outside the main thread signals stay as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextlib.contextmanager
def frozen_batch_norm(detector: nn.Module):
    """Within the block running statistics do not move: for a pass whose outputs are computed again."""
    norms = [module for module in detector.modules() if isinstance(module, GlobalBatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def quiet_tokenizers() -> None:
    """The tokenizers library warns at every fork of a data worker unless told once."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
