"""Florence-2 without its decoder: image and text in, fused features out.

The weights come through native `transformers`, from a hub id or a folder in the same format; the small
checkpoint shipped with the kit (`florence2-tiny`) takes exactly the same path.
"""

import contextlib
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from transformers import AutoTokenizer, Florence2Config, Florence2ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from lib.errors import InputError
from lib.pixels import MEAN as MEAN
from lib.pixels import STD as STD

SHIPPED = Path(__file__).parent / "pretrained"

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
        if attend.shape[1] > self.config.text_config.max_position_embeddings:
            raise InputError(
                f"{image.shape[1]} image tokens and {text.shape[1]} text tokens exceed the encoder's "
                f"{self.config.text_config.max_position_embeddings} positions; use a smaller input_size or scale"
            )
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
    shipped = sorted(path.name for path in SHIPPED.glob("*") if path.is_dir())
    if checkpoint in shipped:
        return str(SHIPPED / checkpoint)
    if checkpoint.startswith("microsoft/"):
        name = checkpoint.split("/")[1] if checkpoint.startswith("microsoft/Florence-2") else "Florence-2-large"
        raise InputError(
            f"checkpoint: {checkpoint} needs remote code and does not load in transformers' own Florence-2; "
            f"use florence-community/{name}, the same weights converted"
        )
    path = Path(checkpoint).expanduser()
    if checkpoint and path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"checkpoint: {path} holds no config.json; give a folder written by save_pretrained")
        return str(path)
    if path.exists() or path.is_absolute() or checkpoint.startswith((".", "~")) or checkpoint.count("/") != 1:
        raise InputError(
            f"checkpoint: {checkpoint!r} is neither a folder nor a hub id; use florence-community/Florence-2-large, "
            f"a folder written by save_pretrained{''.join(f', or {name}' for name in shipped)}"
        )
    return checkpoint


def load_backbone(checkpoint: str) -> tuple[Florence2Encoder, object]:
    """Load encoder (float32) and tokenizer from a hub id or a folder.

    `HF_ENDPOINT`, `HF_HUB_OFFLINE` and the hub cache are honoured by transformers itself.
    Raises InputError with the remedy when the checkpoint cannot be reached, is damaged, or is of another kind.
    """
    source = resolve_checkpoint(checkpoint)
    try:
        _refuse_other_kinds(checkpoint, Florence2Config.get_config_dict(source)[0])
        with quiet_transformers():
            model, found = Florence2ForConditionalGeneration.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True
            )
        tokenizer = load_tokenizer(source)
    except InputError:
        raise
    except Exception as error:  # transformers, safetensors and the hub client each raise types of their own
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        remedy = "check the id, the connection or HF_ENDPOINT, or give a local folder"
        if Path(source).is_dir():
            remedy = "the folder is damaged or incomplete: fetch it again, or give a hub id"
        raise InputError(f"checkpoint: {checkpoint} could not be loaded ({reason}); {remedy}") from None
    # transformers fills what a file lacks with random weights; the decoder is not used and may be absent.
    absent = [name for name in sorted(found["missing_keys"]) if ".decoder." not in name and "lm_head" not in name]
    if absent:
        raise InputError(f"checkpoint: {checkpoint} lacks {len(absent)} weights ({absent[0]}, ...); fetch it again")
    return Florence2Encoder(model.config, model.model), tokenizer


def _refuse_other_kinds(checkpoint: str, config: dict) -> None:
    # Microsoft's own files say `florence2` as well, but name code to be run.
    if config.get("model_type") != "florence2" or "auto_map" in config:
        kind = "needs remote code" if "auto_map" in config else f"is of the kind {config.get('model_type')!r}"
        raise InputError(
            f"checkpoint: {checkpoint} {kind}; use a native Florence-2 such as florence-community/Florence-2-base or "
            "-large (or their -ft versions)"
        )


def load_tokenizer(source):
    """The tokenizer of a checkpoint's folder or hub id; InputError when its files are missing."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    # Without its files transformers makes one that knows no words.
    if len(tokenizer(INSTRUCTION).input_ids) < 10:
        raise InputError(f"{source} holds no tokenizer (tokenizer.json); copy it from the checkpoint it came from")
    return tokenizer


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
    """Prompts to token batches, with the reference's instruction around each prompt.

    Arguments: `max_tokens` that fit beside the image; `padding` "longest" (of the batch) or "max_length", which
    pads to `reference_length` tokens and attends to the padding, as the reference did.
    """

    def __init__(self, tokenizer, max_tokens: int, padding: str = "longest", reference_length: int = 1024):
        self.tokenizer = tokenizer
        self.padding = padding
        self.max_tokens = max_tokens if padding == "longest" else min(reference_length, max_tokens)
        needed = len(self._tokens(""))
        if needed > self.max_tokens:
            raise InputError(
                f"input_size: its image tokens leave room for {self.max_tokens} text tokens in this checkpoint, but "
                f"the instruction takes {needed}; choose a smaller input_size"
            )

    def __call__(self, prompts: list[str]) -> dict[str, Tensor]:
        """-> input_ids and attention_mask, int64 [B, T]. A prompt that does not fit is cut, the instruction never."""
        rows = self.tokenizer([INSTRUCTION.format(prompt=prompt) for prompt in prompts]).input_ids
        rows = [
            row if len(row) <= self.max_tokens else self._cut(prompt, row)
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        length = self.max_tokens if self.padding == "max_length" else max(map(len, rows))
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask = torch.full_like(ids, int(self.padding == "max_length"))
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _tokens(self, prompt: str) -> list[int]:
        return self.tokenizer(INSTRUCTION.format(prompt=prompt)).input_ids

    def _cut(self, prompt: str, row: list[int]) -> list[int]:
        tokens = self.tokenizer(prompt, add_special_tokens=False).input_ids
        # Cut text is not always tokenised as it was before the cut, hence the loop.
        while len(row) > self.max_tokens:
            tokens = tokens[: self.max_tokens - len(row)]
            # A character cut in two decodes to U+FFFD, of more tokens than it had.
            row = self._tokens(self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False).rstrip("\ufffd"))
        return row
