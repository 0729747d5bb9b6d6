"""Florence-2 without its decoder: image and text in, fused features out.

The weights come through native `transformers`, from a hub id or a folder in the same format; the small
checkpoint shipped with the kit (`florence2-tiny`) takes exactly the same path.
"""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from transformers import AutoTokenizer, Florence2Config, Florence2ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from lib.errors import InputError

SHIPPED = Path(__file__).parent / "pretrained"
# The statistics of Florence-2's own image processor (ImageNet).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

INSTRUCTION = (
    "Here's an AI image generated with prompt: {prompt}. \n"
    "Identify unusual or implausible areas in the image and rate the implausibility score, focusing on distorted "
    "objects, distorted human part, unnatural lighting, or illogical spatial relationships.\n"
)


@dataclass
class Features:
    """What the encoder gives the heads; d is the model's width, h x w the token grid."""

    before: Tensor  # [B, 1 + h*w, d] projected image tokens before the text encoder; token 0 is the pooled one
    after: Tensor  # [B, 1 + h*w, d] the same tokens after it
    grid: tuple[int, int]


class Florence2Encoder(nn.Module):
    """Vision tower (DaViT), projector and BART encoder of a Florence-2 checkpoint."""

    def __init__(self, config: Florence2Config, parts=None):
        super().__init__()
        parts = parts or Florence2ForConditionalGeneration(config).model
        self.config = config
        self.vision_tower = parts.vision_tower
        self.multi_modal_projector = parts.multi_modal_projector
        self.text_encoder = parts.language_model.encoder

    @property
    def width(self) -> int:
        return self.config.text_config.d_model

    @property
    def stride(self) -> int:
        """Pixels between neighbouring tokens of the grid."""
        return math.prod(self.config.vision_config.patch_stride)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The token grid of an image of this size; InputError where the position table does not reach."""
        vision = self.config.vision_config
        sides = []
        for side in (height, width):
            for size, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
                side = (side + 2 * padding - size) // stride + 1
            sides.append(side)
        if min(sides) < 1 or max(sides) > vision.max_position_embeddings:
            limit = vision.max_position_embeddings * self.stride
            raise InputError(
                f"input_size {height}x{width} gives a grid of {sides[0]}x{sides[1]} tokens, but this checkpoint knows "
                f"{vision.max_position_embeddings} positions a side: choose at most about {limit} pixels"
            )
        return sides[0], sides[1]

    def max_text_tokens(self, height: int, width: int) -> int:
        """How many text tokens fit beside the image tokens into the encoder's position table."""
        h, w = self.grid(height, width)
        return self.config.text_config.max_position_embeddings - (1 + h * w)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """pixel_values [B, 3, H, W] normalised; input_ids and attention_mask [B, T] -> Features."""
        grid = self.grid(*pixel_values.shape[-2:])
        image = self.multi_modal_projector(self.vision_tower(pixel_values).last_hidden_state)  # [B, 1 + h*w, d]
        text = self.text_encoder.embed_tokens(input_ids).to(image.dtype)  # [B, T, d]
        attend = torch.cat([attention_mask.new_ones(image.shape[:2]), attention_mask], dim=1)
        encoded = self.text_encoder(inputs_embeds=torch.cat([image, text], dim=1), attention_mask=attend)
        return Features(before=image, after=encoded.last_hidden_state[:, : image.shape[1]], grid=grid)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        # The DaViT has no checkpointing of its own in transformers, so its blocks are wrapped here.
        layers = [*self.text_encoder.layers, *(block for stage in self.vision_tower.blocks for block in stage)]
        for layer in layers:
            layer.forward = _checkpointed(layer.forward, layer)


def _checkpointed(forward, module):
    def run(*args, **kwargs):
        if module.training and torch.is_grad_enabled():
            return torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return forward(*args, **kwargs)

    return run


def resolve_checkpoint(checkpoint: str) -> str:
    """A hub id stays; the name of a shipped checkpoint becomes its folder; other kinds are refused with the remedy."""
    shipped = SHIPPED / checkpoint
    if shipped.is_dir():
        return str(shipped)
    if checkpoint.startswith("microsoft/Florence-2"):
        name = checkpoint.split("/")[1]
        raise InputError(
            f"checkpoint: {checkpoint} needs remote code and does not load in transformers' own Florence-2; "
            f"use florence-community/{name}, the same weights converted"
        )
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"checkpoint: {path} holds no config.json; give a folder written by save_pretrained")
        return str(path)
    if path.is_absolute() or checkpoint.startswith(".") or checkpoint.count("/") != 1:
        raise InputError(
            f"checkpoint: {checkpoint} is neither a folder nor a hub id; use florence-community/Florence-2-large, "
            f"a folder written by save_pretrained, or one of {', '.join(sorted(p.name for p in SHIPPED.iterdir()))}"
        )
    return checkpoint


def load_backbone(checkpoint: str) -> tuple[Florence2Encoder, object]:
    """Load encoder (float32) and tokenizer from a hub id or a folder.

    `HF_ENDPOINT`, `HF_HUB_OFFLINE` and the hub cache are honoured by transformers itself.
    Raises InputError with the remedy when the checkpoint cannot be reached or is of another kind.
    """
    source = resolve_checkpoint(checkpoint)
    try:
        config = Florence2Config.get_config_dict(source)[0]
        if config.get("model_type") != "florence2":
            raise InputError(
                f"checkpoint: {checkpoint} is a {config.get('model_type', 'model of unknown kind')!r} checkpoint, not a native "
                "Florence-2; use florence-community/Florence-2-base or -large (or their -ft versions)"
            )
        with quiet_transformers():
            model = Florence2ForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"checkpoint: {checkpoint} could not be loaded ({reason}); check the id, the connection or HF_ENDPOINT, "
            "or give a local folder"
        ) from None
    return Florence2Encoder(model.config, model.model), tokenizer


@contextlib.contextmanager
def quiet_transformers():
    """Silence the loading bar and the report of weights: a notebook needs one line, not forty."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


class TextEncoder:
    """Prompts to token batches, with the reference's instruction around each prompt."""

    def __init__(self, tokenizer, max_tokens: int, padding: str = "longest", reference_length: int = 1024):
        self.tokenizer = tokenizer
        self.padding = padding
        self.max_tokens = max_tokens if padding == "longest" else min(reference_length, max_tokens)

    def __call__(self, prompts: list[str]) -> dict[str, Tensor]:
        """-> input_ids and attention_mask [B, T], both int64.

        The prompt is cut, never the instruction, when both do not fit. `max_length` pads to 1,024 tokens and
        attends to the padding, which is what the reference did.
        """
        texts = [INSTRUCTION.format(prompt=self._fitting(prompt)) for prompt in prompts]
        batch = self.tokenizer(texts, padding=self.padding, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        mask = batch["attention_mask"]
        return {"input_ids": batch["input_ids"], "attention_mask": torch.ones_like(mask) if self.padding == "max_length" else mask}

    def _fitting(self, prompt: str) -> str:
        around = len(self.tokenizer(INSTRUCTION.format(prompt="")).input_ids)
        tokens = self.tokenizer(prompt, add_special_tokens=False).input_ids
        room = self.max_tokens - around - 2
        return prompt if len(tokens) <= room else self.tokenizer.decode(tokens[: max(room, 0)])
