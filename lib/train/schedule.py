"""The two stages of a run: which steps they take, over which images, at which learning rate."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from lib.config import Experiment
from lib.data.order import StepSampler


@dataclass(frozen=True)
class Stage:
    """One part of the run; it ends `first`..`last` optimizer steps after the run's beginning."""

    name: str  # "warmup": encoder frozen, constant rate; "main": everything, cosine
    sampler: StepSampler
    first: int
    last: int

    def epoch(self, step: int) -> int:
        """The epoch of the stage, counted from 1, in which the run's `step`-th step lay."""
        return -(-(step - self.first) // self.sampler.steps_per_epoch)

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens after every so many epochs, and at the stage's end, is due after this step."""
        if every < 1 or not self.first < step <= self.last:
            return False
        return step == self.last or (step - self.first) % (every * self.sampler.steps_per_epoch) == 0

    def rate(self, step: int, base: float, floor: float) -> float:
        """Learning rate of the update that follows `step` updates: `base`, or a cosine from there to `floor`."""
        if self.name == "warmup":
            return base
        progress = (step - self.first) / (self.last - self.first)
        return floor + (base - floor) * (1 + math.cos(math.pi * progress)) / 2


def plan_stages(config: Experiment, images: int, rank: int = 0, world: int = 1) -> list[Stage]:
    """The warm-up and the main stage, as far as they have steps, for one of `world` processes."""
    stages, first = [], 0
    plan = (("warmup", config.warmup_epoch, 0, config.batch_size_warmup),
            ("main", config.epoch, config.iters, config.batch_size))  # fmt: skip
    for number, (name, epochs, iters, batch_size) in enumerate(plan):
        sampler = StepSampler(images, config.seed, number, batch_size, config.accumulate_step, rank, world)
        if steps := iters or epochs * sampler.steps_per_epoch:
            stages.append(Stage(name, sampler, first, first + steps))
            first = stages[-1].last
    return stages


def make_optimizer(detector: nn.Module, config: Experiment) -> torch.optim.AdamW:
    """AdamW with the recipe's two groups over what trains now: the encoder's (adapters too) and the heads'.

    `base_lr` is each group's own rate, `floor_lr` where its cosine ends.
    """
    groups = []
    for encoder, share, decay in (
        (True, config.backbone_lr_decay, config.backbone_weight_decay),
        (False, 1.0, config.weight_decay),
    ):
        trained = [
            parameter
            for name, parameter in detector.named_parameters()
            if parameter.requires_grad and name.startswith("encoder.") == encoder
        ]
        rates = {"base_lr": share * config.lr, "floor_lr": share * config.min_lr}
        groups += [{"params": trained, "weight_decay": decay, **rates}] if trained else []
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=groups[0]["params"][0].is_cuda)
    # The loss scaler leaves a step out by itself; done inside the kernel nobody would learn of it.
    optimizer._step_supports_amp_scaling = False
    return optimizer


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
