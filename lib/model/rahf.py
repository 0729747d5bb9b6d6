"""The heads of the organisers' baseline, EM-RAHF on AltCLIP, for `mask_head: rahf` and `score_head: rahf`.

Source: github.com/DYEvaLab/EvalMuse-Structure (`model/model_final.py`), after RAHF, Liang et al., "Rich Human Feedback
for Text-to-Image Generation", CVPR 2024. Both read the fused image tokens as a map. Their LayerNorms span channels and
places with a weight for each value, so that one pair of heads fits one input size; at 448 px they hold 0.85 billion
weights. Widths follow the encoder's width d and are the baseline's at d = 1024.
"""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from lib.config import Experiment
from lib.model.encoders.encoder import Encoder, Features, as_map


def _normed(layer: nn.Module, channels: int, h: int, w: int) -> list[nn.Module]:
    return [layer, nn.LayerNorm([channels, h, w]), nn.ReLU()]


class RahfMaskHead(nn.Module):
    """Two 3x3 convolutions, four steps of a transposed convolution (x2) and two convolutions, then one to a heatmap."""

    one_grid = True

    def __init__(self, config: Experiment, encoder: Encoder):
        super().__init__()
        (h, w), d = encoder.grid(*config.input_shape), encoder.width
        stem = [
            layer
            for a, b in ((d, d // 2), (d // 2, d // 2))
            for layer in _normed(nn.Conv2d(a, b, 3, padding=1), b, h, w)
        ]
        self.stem, steps = nn.Sequential(*stem), []
        for k, (a, b) in enumerate(itertools.pairwise((d // 2, d, d // 2, d // 2, d // 4)), start=1):
            size = h * 2**k, w * 2**k
            steps += _normed(nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1), b, *size)
            for _ in range(2):
                steps += _normed(nn.Conv2d(b, b, 3, padding=1), b, *size)
        self.steps = nn.Sequential(*steps)
        self.out = nn.Conv2d(d // 4, 1, 3, padding=1)

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """-> float32 [B, *size] in 0..1."""
        logits = self.out(self.steps(self.stem(as_map(features.after, features.grid)))).float()
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False, antialias=True)
        return logits.squeeze(1).sigmoid()


class RahfScoreHead(nn.Module):
    """Four 2x2 convolutions, flattened, then three linear layers without norms."""

    one_grid = True

    def __init__(self, config: Experiment, encoder: Encoder):
        super().__init__()
        (h, w), d = encoder.grid(*config.input_shape), encoder.width
        widths = (d, d, d // 2, d // 8, d // 16)
        convs = [_normed(nn.Conv2d(a, b, 2), b, h - k, w - k) for k, (a, b) in enumerate(itertools.pairwise(widths), 1)]
        self.convs = nn.Sequential(*itertools.chain(*convs))
        self.mlp = nn.Sequential(
            nn.Linear(widths[-1] * (h - 4) * (w - 4), 2 * d), nn.ReLU(), nn.Linear(2 * d, d), nn.ReLU(), nn.Linear(d, 1)
        )

    def forward(self, features: Features) -> Tensor:
        """-> float32 [B] in 0..1."""
        return self.mlp(self.convs(as_map(features.after, features.grid)).flatten(1)).float().squeeze(1).sigmoid()
