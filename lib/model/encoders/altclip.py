"""AltCLIP with a fusion of image and text: the organisers' baseline EM-RAHF as a second `model`.

What the baseline is (github.com/DYEvaLab/EvalMuse-Structure: `model/model_final.py`, `dataset.py`, `train.py`,
`run_train.sh`; after RAHF, Liang et al., "Rich Human Feedback for Text-to-Image Generation", CVPR 2024, figure 3):

- The vision transformer of `BAAI/AltCLIP` (ViT-L/14, width 1024) at 448 px: 32x32 tokens and a class token, taken
  before the last norm. Its 16x16 table of positions is interpolated to 32x32.
- Of AltCLIP's text model the embeddings only, on "human artifact {prompt}" padded to 512 tokens.
- Image tokens, then text tokens through six new self-attention layers (feed-forward 2048) and a norm. Each layer norms,
  then adds the attention to what was normed, and the same for the feed-forward. Padding is attended to.
- On the fused image tokens: a heatmap of 512 px by transposed convolutions, a score by four 2x2 convolutions and
  three linear layers.
- First half of 2,000 steps with both pretrained parts frozen, second half with all trained; AdamW at 2e-5, MSE losses.

This module is the encoder and the fusion; its class attributes and `notebooks/params/altclip_full.yaml` repeat the
rest. The heads are the kit's (`mask_head: last` and `score_head: conv` come nearest), for two reasons: two runs then
differ in the encoder alone, and the baseline's heads norm over channels and places with a weight for each, 0.68 billion
weights that fit one input size only. Other differences: the table of positions stays 16x16 and is interpolated (cubic)
at each pass, so that any size works; padding is masked unless `text_padding: max_length`; the number of attention heads
is not published with the code and is taken as one per 64 channels. The figures of the published baseline are therefore
not to be expected to the digit.
"""

import torch
from torch import Tensor, nn
from transformers import AltCLIPConfig, AltCLIPModel
from transformers.models.altclip.modeling_altclip import AltCLIPEncoderLayer

from lib.errors import InputError
from lib.model.encoders.encoder import Encoder, Features, Tokens, told_size

LAYERS = 6
HEAD_WIDTH = 64


class FusionLayer(nn.Module):
    """Self-attention and feed-forward, each added to its normed input."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, max(1, width // HEAD_WIDTH), batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """x [B, N, d], padding bool [B, N] -> [B, N, d]."""
        x = self.norm1(x)
        x = x + self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        x = self.norm2(x)
        return x + self.feed_forward(x)


class Fusion(nn.Module):
    """Tokens -> Features, by self-attention over image and text together."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(width) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tokens) -> Features:
        x = torch.cat([tokens.image, tokens.text], dim=1)
        padding = torch.cat([tokens.attention_mask.new_ones(tokens.image.shape[:2]), tokens.attention_mask], dim=1) == 0
        for layer in self.layers:
            x = layer(x, padding)
        return Features(before=tokens.image, after=self.norm(x[:, : tokens.image.shape[1]]), grid=tokens.grid)


class AltClipEncoder(Encoder):
    """AltCLIP's vision transformer and the embeddings of its text model; `Tokens` out."""

    model, title = "altclip", "AltCLIP"
    hub_ids, publishers = "BAAI/AltCLIP", ("BAAI/AltCLIP",)
    native = AltCLIPModel
    unused = (
        "text_model.roberta.encoder.", "text_model.pre_LN.", "text_model.transformation.", "post_layernorm.",
        "visual_projection.", "text_projection.", "logit_scale",
    )  # fmt: skip
    template = "human artifact {prompt}"
    lora_targets = ("patch_embedding", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    blocks = (AltCLIPEncoderLayer, FusionLayer)

    def __init__(self, config: AltCLIPConfig, native: AltCLIPModel | None = None):
        super().__init__()
        image, text = config.vision_config.hidden_size, config.text_config.hidden_size
        if image != text:
            raise InputError(
                f"checkpoint: its image tokens have width {image} and its text tokens {text}, which cannot be fused; "
                f"use {self.hub_ids}"
            )
        native = native or AltCLIPModel(config)
        self.config = config
        self.vision = native.vision_model
        self.vision.post_layernorm = nn.Identity()  # of the pooled output, which nothing reads: it would never train
        self.words = native.text_model.roberta.embeddings
        for part in (self.vision.embeddings, self.words):
            for name, buffer in list(part.named_buffers()):
                part.register_buffer(name, buffer)  # now persistent: a saved encoder is filled from its file alone

    @property
    def width(self) -> int:
        return self.config.vision_config.hidden_size

    @property
    def stride(self) -> int:
        return self.config.vision_config.patch_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        # The patches would leave out pixels at the right and below, and the heatmap would be stretched over them.
        if height % self.stride or width % self.stride or min(height, width) < self.stride:
            below = max(self.stride, min(height, width) // self.stride * self.stride)
            raise InputError(
                f"{told_size(height, width)} cannot be cut into this checkpoint's patches of {self.stride} pixels; "
                f"use multiples of {self.stride}, such as {below} or {below + self.stride}"
            )
        return height // self.stride, width // self.stride

    def max_text_tokens(self, height: int, width: int) -> int:
        text = self.config.text_config  # positions are counted from behind the padding's
        return text.max_position_embeddings - text.pad_token_id - 1

    def fusion(self) -> Fusion:
        return Fusion(self.width)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """pixel_values [B, 3, H, W] normalised; input_ids and attention_mask [B, T] -> Tokens."""
        grid = self.grid(*pixel_values.shape[-2:])
        image = self.vision(pixel_values, interpolate_pos_encoding=True).last_hidden_state
        return Tokens(image, self.words(input_ids).to(image.dtype), attention_mask, grid)
