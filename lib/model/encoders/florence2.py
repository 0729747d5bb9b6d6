"""Florence-2 without its decoder: vision tower (DaViT), projector, and a BART encoder that fuses image and text.

Checkpoints: `florence-community/Florence-2-*`, and `florence2-tiny`, which is shipped with the kit.
"""

import math

import torch
from torch import Tensor
from transformers import AttentionInterface, Florence2Config, Florence2ForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.bart.modeling_bart import BartEncoderLayer
from transformers.models.florence2.modeling_florence2 import Florence2VisionBlock, Florence2VisionChannelAttention

from lib.errors import InputError
from lib.model.encoders.encoder import Encoder, Features, size_words
from lib.model.encoders.text import INSTRUCTION


def attend(module, query: Tensor, key: Tensor, value: Tensor, attention_mask, scaling: float, **options):
    """DaViT's attention, as transformers calls it: torch's own, but over channels in half precision two products.

    There a head is as long as the image has tokens, [B, groups, channels, h*w]: no fused kernel takes that, and torch
    would go on with copies in float32 (188 bytes of traffic an element of the query, against 71).
    """
    if not isinstance(module, Florence2VisionChannelAttention) or query.dtype == torch.float32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    # Scaled first: the sum over an image does not fit into float16.
    weights = ((query * scaling) @ key.transpose(2, 3)).softmax(-1).to(value.dtype)
    return (weights @ value).transpose(1, 2), None


AttentionInterface.register("davit", attend)


class Florence2Encoder(Encoder):
    """Image and text in, `Features` out: the text encoder is pretrained on image tokens followed by text tokens."""

    model = "florence2"
    hub_ids = "florence-community/Florence-2-large or -base (or their -ft versions)"
    native = Florence2ForConditionalGeneration
    unused = (".decoder.", "lm_head")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
    template = INSTRUCTION
    # Linear layers of both transformers and the plain convolutions that embed patches. conv1 and conv2 are depthwise:
    # peft cannot merge those.
    lora_targets = ("qkv", "proj", "fc1", "fc2", "q_proj", "k_proj", "v_proj", "out_proj", "conv", "image_projection")
    blocks = (Florence2VisionBlock, BartEncoderLayer)
    towers = ("vision_tower", "text_encoder")

    def __init__(self, config: Florence2Config, native: Florence2ForConditionalGeneration | None = None):
        super().__init__()
        parts = (native or Florence2ForConditionalGeneration(config)).model
        self.config = config
        self.vision_tower = parts.vision_tower
        config.vision_config._attn_implementation = "davit"
        self.multi_modal_projector = parts.multi_modal_projector
        self.text_encoder = parts.language_model.encoder
        self.width, self.stride = config.text_config.d_model, math.prod(config.vision_config.patch_stride)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        vision = self.config.vision_config
        sides = []
        for side in (height, width):
            for size, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
                side = (side + 2 * padding - size) // stride + 1
            sides.append(side)
        if min(sides) < 1 or max(sides) > vision.max_position_embeddings:
            limit = vision.max_position_embeddings * self.stride
            raise InputError(
                f"{size_words(height, width)} gives a grid of {sides[0]}x{sides[1]} tokens, but this checkpoint knows "
                f"{vision.max_position_embeddings} positions a side: choose at most about {limit} pixels"
            )
        return sides[0], sides[1]

    def max_text_tokens(self, height: int, width: int) -> int:
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
