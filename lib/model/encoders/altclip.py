"""AltCLIP with a fusion of image and text: the organisers' baseline EM-RAHF as a second `model`.

The baseline (github.com/DYEvaLab/EvalMuse-Structure; after RAHF, Liang et al., "Rich Human Feedback for Text-to-Image
Generation", CVPR 2024) is the vision transformer of `BAAI/AltCLIP` (ViT-L/14, width 1024) at 448 px, before its last
norm; of AltCLIP's text model the embeddings only, on "human artifact {prompt}" padded to 512 tokens that are attended
to; and six new layers of self-attention over image and text, which add to what they normed (one head, no biases).

`fusion`, `mask_head` and `score_head` have the baseline's as `rahf` (`lib.model.rahf`), and `altclip_full.yaml` repeats
the rest. By default two runs differ in the encoder alone: the kit's heads, and a fusion of one attention head per 64
channels. The table of positions is interpolated at each pass, so that any size works; padding is masked unless
`text_padding: max_length`.
"""

import torch
from torch import Tensor, nn
from transformers import AltCLIPConfig, AltCLIPModel
from transformers.models.altclip.modeling_altclip import AltCLIPEncoderLayer

from lib.errors import InputError
from lib.model.encoders.encoder import Encoder, Features, Tokens, size_words

LAYERS = 6
# The parameter `fusion`: width of an attention head (None: of all tokens) and whether attention has biases.
FUSIONS = {"multihead": (64, True), "rahf": (None, False)}


class FusionLayer(nn.Module):
    """Self-attention and feed-forward, each added to its normed input."""

    def __init__(self, width: int, kind: str):
        super().__init__()
        head_width, bias = FUSIONS[kind]
        heads = max(1, width // (head_width or width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """x [B, N, d], padding bool [B, N] -> [B, N, d]."""
        x = self.norm1(x)
        x = x + self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        x = self.norm2(x)
        return x + self.feed_forward(x)


class Fusion(nn.Module):
    """Tokens -> Features, by self-attention over image and text together."""

    def __init__(self, width: int, kind: str = "multihead"):
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(width, kind) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tokens) -> Features:
        x = torch.cat([tokens.image, tokens.text], dim=1)
        padding = torch.cat([tokens.attention_mask.new_ones(tokens.image.shape[:2]), tokens.attention_mask], dim=1) == 0
        for layer in self.layers:
            x = layer(x, padding)
        return Features(before=tokens.image, after=self.norm(x[:, : tokens.image.shape[1]]), grid=tokens.grid)


class AltClipEncoder(Encoder):
    """AltCLIP's vision transformer and the embeddings of its text model; `Tokens` out."""

    model = "altclip"
    hub_ids = "BAAI/AltCLIP"
    native = AltCLIPModel
    unused = (
        "text_model.roberta.encoder.", "text_model.pre_LN.", "text_model.transformation.", "post_layernorm.",
        "visual_projection.", "text_projection.", "logit_scale",
    )  # fmt: skip
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP
    template = "human artifact {prompt}"
    lora_targets = ("patch_embedding", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    blocks = (AltCLIPEncoderLayer, FusionLayer)
    towers = ("vision",)

    def __init__(self, config: AltCLIPConfig, native: AltCLIPModel | None = None):
        super().__init__()
        native, vision = native or AltCLIPModel(config), config.vision_config
        self.config, self.width, self.stride = config, vision.hidden_size, vision.patch_size
        self.vision = native.vision_model
        self.vision.post_layernorm = nn.Identity()  # of the pooled output, which nothing reads: it would never train
        self.words = native.text_model.roberta.embeddings
        for part in (self.vision.embeddings, self.words):
            for name, buffer in list(part.named_buffers()):
                part.register_buffer(name, buffer)  # now persistent: a saved encoder is filled from its file alone

    def grid(self, height: int, width: int) -> tuple[int, int]:
        # The patches would leave out pixels at the right and below, and the heatmap would be stretched over them.
        if height % self.stride or width % self.stride:
            below = max(self.stride, min(height, width) // self.stride * self.stride)
            raise InputError(
                f"{size_words(height, width)} cannot be cut into this checkpoint's patches of {self.stride} pixels; "
                f"use multiples of {self.stride}, such as {below} or {below + self.stride}"
            )
        return height // self.stride, width // self.stride

    def max_text_tokens(self, height: int, width: int) -> int:
        text = self.config.text_config  # positions are counted from behind the padding's
        return text.max_position_embeddings - text.pad_token_id - 1

    def fusion(self, kind: str) -> Fusion:
        return Fusion(self.width, kind)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """pixel_values [B, 3, H, W] normalised; input_ids and attention_mask [B, T] -> Tokens."""
        grid = self.grid(*pixel_values.shape[-2:])
        image = self.vision(pixel_values, interpolate_pos_encoding=True).last_hidden_state
        return Tokens(image, self.words(input_ids).to(image.dtype), attention_mask, grid)
