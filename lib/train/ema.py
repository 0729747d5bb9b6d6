"""Exponential moving average of weights, buffers included."""

import contextlib

import torch
from torch import Tensor, nn

from lib.model.detector import own_weights
from lib.train.fsdp import own_part, spread_as


class Ema:
    """Averages of the floating-point weights and buffers, sharded as these are; counters are copied.

    Args:
        detector: the model to follow.
        decay: share of the old average kept at each step, 0..1.
    """

    def __init__(self, detector: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in own_weights(detector).items()}

    @torch.no_grad()
    def update(self, detector: nn.Module) -> None:
        """Move the averages towards the weights as they are now."""
        averages, values = [], []
        for name, value in own_weights(detector).items():
            if value.is_floating_point():
                averages.append(own_part(self.weights[name]))
                values.append(own_part(value))
            else:
                self.weights[name].copy_(value)
        torch._foreach_lerp_(averages, values, 1 - self.decay)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Go on from saved averages."""
        for name, value in weights.items():
            self.weights[name].copy_(spread_as(value, self.weights[name]))

    @contextlib.contextmanager
    def swapped_in(self, detector: nn.Module):
        """Within the block the detector (not sharded) holds the averages; its own weights come back afterwards."""
        own = {name: value.detach().clone() for name, value in own_weights(detector).items()}
        detector.load_state_dict(self.weights, strict=False)
        try:
            yield
        finally:
            detector.load_state_dict(own, strict=False)
