"""Exponential moving average of weights, buffers included."""

import contextlib

import torch
from torch import Tensor, nn


def own_weights(detector: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint of this run must hold: all weights and buffers, without the frozen base under LoRA."""
    state = detector.state_dict()
    if not detector.config.lora_rank:
        return state
    trained = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    return {k: v for k, v in state.items() if k in trained or "lora_" in k or not k.startswith("encoder.")}


class Ema:
    """Averages of the floating-point weights and buffers; counters are copied.

    Args:
        detector: the model to follow.
        decay: share of the old average kept at each step, 0..1.
    """

    def __init__(self, detector: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in own_weights(detector).items()}

    @torch.no_grad()
    def update(self, detector: nn.Module) -> None:
        for name, value in own_weights(detector).items():
            if value.is_floating_point() and name in self.weights:
                self.weights[name].lerp_(value, 1 - self.decay)
            else:
                self.weights[name] = value.detach().clone()

    @contextlib.contextmanager
    def swapped_in(self, detector: nn.Module):
        """Within the block the detector holds the averages; its own weights come back afterwards."""
        own = {name: value.detach().clone() for name, value in own_weights(detector).items()}
        detector.load_state_dict(self.weights, strict=False)
        try:
            yield
        finally:
            detector.load_state_dict(own, strict=False)
