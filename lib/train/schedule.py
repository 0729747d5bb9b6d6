"""The two stages of a run: which steps they take, over which images, at which learning rate."""

import math
from dataclasses import dataclass

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

    def ends_epoch(self, step: int) -> bool:
        return (step - self.first) % self.sampler.steps_per_epoch == 0

    def rate(self, step: int, base: float, floor: float) -> float:
        """Learning rate of the update that follows `step` updates: `base`, or a cosine from there to `floor`."""
        if self.name == "warmup":
            return base
        progress = (step - self.first) / (self.last - self.first)
        return floor + (base - floor) * (1 + math.cos(math.pi * progress)) / 2


def plan_stages(
    config: Experiment, images: int, rank: int = 0, world: int = 1, splits: dict[str, int] | None = None
) -> list[Stage]:
    """The warm-up (when it has epochs) and the main stage.

    `splits` cuts the micro-batches of a stage into so many where the memory did not suffice; the number of images of
    an optimizer step does not depend on it.
    """
    stages, first = [], 0
    plan = (("warmup", config.warmup_epoch, config.batch_size_warmup), ("main", config.epoch, config.batch_size))
    for number, (name, epochs, batch_size) in enumerate(plan):
        if epochs:
            pieces = (splits or {}).get(name, 1)
            sampler = StepSampler(images, config.seed, number, batch_size, config.accumulate_step, rank, world, pieces)
            stages.append(Stage(name, sampler, first, first + epochs * sampler.steps_per_epoch))
            first = stages[-1].last
    return stages
