"""What an encoder offers the detector, whichever pretrained model it is cut from.

The modules `florence2` and `altclip` beside this one hold the two there are; `backbone` loads them.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.utils.checkpoint
from torch import Tensor, nn


@dataclass
class Features:
    """What the heads read; d is the encoder's width, h x w the token grid."""

    before: Tensor  # [B, 1 + h*w, d] image tokens that have not seen the text; token 0 is the pooled one
    after: Tensor  # [B, 1 + h*w, d] the same tokens fused with the text
    grid: tuple[int, int]


@dataclass
class Tokens:
    """What an encoder gives that leaves the fusion of image and text to a module of its own."""

    image: Tensor  # [B, 1 + h*w, d]; token 0 is the pooled one
    text: Tensor  # [B, T, d]
    attention_mask: Tensor  # [B, T], 0 where the text is padding
    grid: tuple[int, int]


class Encoder(nn.Module):
    """Base of the encoders: (config, native model or None for random weights) -> module.

    forward(pixel_values [B, 3, H, W], input_ids [B, T], attention_mask [B, T]) gives `Features`, or `Tokens` that the
    module of `fusion()` makes into `Features`. Its pixels are normalised by `mean` and `std`.
    """

    model: str  # the parameter `model`, which is also the `model_type` of the checkpoint's config.json
    hub_ids: str  # what a refusal recommends
    native: type  # the class of transformers that reads the checkpoint
    unused: tuple[str, ...]  # fragments of the names of weights that a checkpoint may lack
    mean: tuple[float, float, float]  # of the channels, in 0..1, as the model's own image processor has them
    std: tuple[float, float, float]
    template: str  # the text around a prompt
    lora_targets: tuple[str, ...]  # layers that get an adapter, by the last part of their name
    blocks: tuple[type, ...]  # modules whose activations `gradient_checkpointing` computes anew, fusion included
    towers: tuple[str, ...]  # modules that the parameter `compile` compiles
    base_model_prefix = ""  # peft takes what has a `config` for a model of transformers, and asks for this
    width: int  # length d of a token
    stride: int  # pixels between neighbouring tokens of the grid

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The token grid of an image of this size in pixels; InputError for a size that the checkpoint cannot take."""
        raise NotImplementedError

    def max_text_tokens(self, height: int, width: int) -> int:
        """How many text tokens the position table has room for beside an image of this size."""
        raise NotImplementedError

    def compile_towers(self, backend: str = "inductor") -> None:
        """Compile the modules with most of the work, at their first pass: fewer casts and kernels on a GPU."""
        for tower in self.towers:
            getattr(self, tower).compile(backend=backend)

    def fusion(self, kind: str) -> nn.Module:
        """A module without pretrained weights, trained like a head, that makes the encoder's output `Features`.

        `kind` is the parameter `fusion`; an encoder that fuses by itself has no use for it.
        """
        return nn.Identity()


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, 1 + h*w, C] without the pooled token -> [B, C, h, w]."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)


def size_words(height: int, width: int) -> str:
    """An input size by the names of its parameters."""
    return f"input_size {height}" + (f" with input_width {width}" if width != height else "")


def recompute_activations(model: nn.Module, blocks: tuple[type, ...]) -> None:
    """Run all modules of these classes anew in the backward pass: less memory, about a third more time."""
    for module in model.modules():
        if isinstance(module, blocks):
            module.forward = partial(checkpointed, module, module.forward)


def checkpointed(module: nn.Module, forward, *args, **kwargs):
    """What `forward` gives; while `module` trains, the backward pass computes it anew and keeps the inputs only."""
    if module.training and torch.is_grad_enabled():
        return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)
