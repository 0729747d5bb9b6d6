"""The order in which steps see the images: a pure function of (seed, stage, epoch), with nothing to save or share."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=2)  # every step of an epoch asks for the same
def _permutation(seed: int, key: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, key)).permutation(length)


class StepSampler:
    """Micro-batches of one rank for the steps of a stage, from any step on.

    One optimizer step takes batch_size x world x accumulate images of the epoch's permutation; the last step of
    an epoch takes what is left, shared out evenly. A rank that would get nothing receives one row of weight 0,
    because every rank must take part in every step.
    """

    def __init__(
        self, length: int, seed: int, stage: int, batch_size: int, accumulate: int, rank: int = 0, world: int = 1
    ):
        self.length, self.seed, self.stage, self.rank, self.world = length, seed, stage, rank, world
        self.per_step = batch_size * world * accumulate
        self.batch_size = batch_size
        self.steps_per_epoch = -(-length // self.per_step)

    def images_in_step(self, step: int) -> int:
        """How many images all ranks see in this step of the stage."""
        return min(self.per_step, self.length - step % self.steps_per_epoch * self.per_step)

    def micro_batches(self, step: int) -> list[list[tuple]]:
        """This rank's micro-batches of a step: lists of (epoch, index, weight)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        # The stage goes into the epoch's number, so that no augmentation of the warm-up comes again.
        key = self.stage * 1_000_000 + epoch
        order = _permutation(self.seed, key, self.length)
        images = order[within * self.per_step : (within + 1) * self.per_step]
        # First into micro-batches, then these among the ranks: batch statistics are the same for any number of them.
        parts = np.array_split(images, -(-len(images) // (self.batch_size * self.world)))
        shares = [np.array_split(part, self.world)[self.rank] for part in parts]
        return [[(key, int(i), 1) for i in share] or [(key, int(images[0]), 0)] for share in shares]

    def flat(self, first: int, last: int):
        """All micro-batches of the steps first..last-1, one after another, as a DataLoader wants them."""
        for step in range(first, last):
            yield from self.micro_batches(step)
