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

    def shares(self, step: int) -> list[list[np.ndarray]]:
        """The images of a step by micro-batch and rank: [micro-batch][rank] -> indices, maybe none."""
        within = step % self.steps_per_epoch * self.per_step
        images = _permutation(self.seed, self._key(step), self.length)[within : within + self.per_step]
        # First into micro-batches, then these among the ranks: batch statistics are the same for any number of them.
        parts = np.array_split(images, -(-len(images) // (self.batch_size * self.world)))
        return [np.array_split(part, self.world) for part in parts]

    def micro_batches(self, step: int) -> list[list[tuple]]:
        """This rank's micro-batches of a step: lists of (epoch, index, weight)."""
        key, shares = self._key(step), self.shares(step)
        idle = [(key, int(shares[0][0][0]), 0)]
        return [[(key, int(i), 1) for i in ranks[self.rank]] or idle for ranks in shares]

    def _key(self, step: int) -> int:
        # The stage goes into the epoch's number, so that no augmentation of the warm-up comes again.
        return self.stage * 1_000_000 + step // self.steps_per_epoch

    def flat(self, first: int, last: int):
        """All micro-batches of the steps first..last-1, one after another, as a DataLoader wants them."""
        for step in range(first, last):
            yield from self.micro_batches(step)
