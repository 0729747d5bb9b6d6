"""Mask heads and score heads over the encoder's features.

Widths follow the encoder's width d and reproduce the reference at d = 1024; the number of upsampling steps
follows from the encoder's stride and `mask_stride`. All heads end in float32 values in 0..1.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.distributed import sum_over_ranks
from lib.errors import InputError
from lib.model.encoders.encoder import Features
from lib.scale import HEATMAP_LEVELS, SCORE_LEVELS

SMALLEST_MAP = 5  # tokens a side that the four 2x2 convolutions of the `conv` head leave something of


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm over the rows of all ranks, on any device.

    With 3 or 4 images on a GPU the statistics of one rank are noise. A batch that is a single row in all has no
    variance: it is normalised with the running statistics. (torch's SyncBatchNorm works on accelerators only.)
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C] -> [B, C]; B may be 0 on a rank that only takes part."""
        if not self.training:
            return super().forward(x)
        x = x.float()
        total = sum_over_ranks(torch.cat([x.new_tensor([len(x)]), x.sum(0)]))
        count, mean = total[0].detach(), total[1:] / total[0]
        if count < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        variance = sum_over_ranks((x - mean).square().sum(0)) / count
        if self.momentum:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
                self.num_batches_tracked.add_(1)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def _norm2d(channels: int) -> nn.Module:
    # GroupNorm does not depend on the batch, which is 3 or 4 images a GPU in the recipe.
    return nn.GroupNorm(math.gcd(channels, 8), channels)


class MaskHead(nn.Module):
    """Features -> heatmap [B, H, W] in 0..1.

    `concat`: projected image tokens beside encoded ones (2d channels); `last`: encoded ones only; `concat_cls`:
    as concat, but five soft classes (no, one, ... four annotators) averaged by probability.
    """

    def __init__(self, kind: str, width: int, stride: int, mask_stride: int = 1):
        super().__init__()
        steps = _doublings(stride, mask_stride)
        self.kind = kind
        incoming = width if kind == "last" else 2 * width
        self.fuse = nn.Sequential(_block(incoming, width), _block(width, width // 2))
        ladder = [width // 2, width // 4, width // 4, width // 8, width // 16, width // 32]
        ladder = [ladder[0], *(max(8, w) for w in ladder[1:]), *[max(8, width // 32)] * max(0, steps - 5)]
        self.up = nn.Sequential(*(_UpStep(ladder[k], ladder[k + 1]) for k in range(steps)))
        self.out = nn.Conv2d(ladder[steps], len(HEATMAP_LEVELS) if kind == "concat_cls" else 1, 3, padding=1)
        self.register_buffer("levels", torch.tensor(HEATMAP_LEVELS) / 255, persistent=False)

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """-> float32 [B, *size]."""
        h, w = features.grid
        parts = [features.after] if self.kind == "last" else [features.before, features.after]
        maps = [part[:, 1:].transpose(1, 2).unflatten(2, (h, w)) for part in parts]  # each [B, d, h, w]
        logits = self.out(self.up(self.fuse(torch.cat(maps, dim=1)))).float()
        if logits.shape[-2:] != size:
            shrinks = size[0] < logits.shape[-2] or size[1] < logits.shape[-1]
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
        if self.kind == "concat_cls":
            # A product and a sum: autocast would run einsum and matmul in half precision.
            return (logits.softmax(1) * self.levels[:, None, None]).sum(1)
        return logits.squeeze(1).sigmoid()


def _doublings(stride: int, mask_stride: int) -> int:
    """How many steps of x2 lead from `stride` to `mask_stride`, which is rounded up where a step leaves a fraction."""
    allowed = [stride]
    while allowed[-1] > 1:
        allowed.append(-(-allowed[-1] // 2))
    if mask_stride not in allowed:
        choices = ", ".join(map(str, allowed))
        raise InputError(
            f"mask_stride: {mask_stride} cannot be reached from the encoder's stride {stride}; use {choices}"
        )
    return allowed.index(mask_stride)


def _block(incoming: int, outgoing: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(incoming, outgoing, 3, padding=1), _norm2d(outgoing), nn.ReLU())


class _UpStep(nn.Module):
    """3x3 convolution, bilinear x2, norm, ReLU."""

    def __init__(self, incoming: int, outgoing: int):
        super().__init__()
        self.conv = nn.Conv2d(incoming, outgoing, 3, padding=1)
        self.norm = _norm2d(outgoing)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.conv(x), scale_factor=2, mode="bilinear", align_corners=False)
        return F.relu(self.norm(x))


class ScoreHead(nn.Module):
    """Features -> score [B] in 0..1 (0 is mos 1, 1 is mos 5).

    `linear`: the encoded pooled token; `linear2`: the pooled token before and after the encoder; `conv`: four
    2x2 convolutions over the encoded map, averaged; `*_cls`: thirteen soft classes averaged by probability.
    """

    def __init__(self, kind: str, width: int):
        super().__init__()
        self.kind = kind
        self.convs = nn.Identity()
        incoming = 2 * width if kind.startswith("linear2") else width
        if kind == "conv":
            widths = [width, width, *(max(8, width // share) for share in (2, 8, 16))]
            self.convs = nn.Sequential(*(_conv2x2(a, b) for a, b in itertools.pairwise(widths)))
            incoming = widths[-1]
        classes = len(SCORE_LEVELS) if kind.endswith("_cls") else 1
        self.mlp = nn.Sequential(
            nn.Linear(incoming, 2 * width), GlobalBatchNorm1d(2 * width), nn.ReLU(),
            nn.Linear(2 * width, width), GlobalBatchNorm1d(width), nn.ReLU(),
            nn.Linear(width, classes),
        )  # fmt: skip
        self.register_buffer("levels", torch.tensor(SCORE_LEVELS), persistent=False)

    def forward(self, features: Features) -> Tensor:
        """-> float32 [B]."""
        logits = self.mlp(self._pooled(features)).float()
        if self.kind.endswith("_cls"):
            return (logits.softmax(1) * self.levels).sum(1)  # not @: see MaskHead
        return logits.squeeze(1).sigmoid()

    def checked(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The token grid, when this head can work on it; else InputError."""
        if self.kind == "conv" and min(grid) < SMALLEST_MAP:
            raise InputError(
                f"score_head: conv needs a grid of at least {SMALLEST_MAP}x{SMALLEST_MAP} tokens, not "
                f"{grid[0]}x{grid[1]}; raise input_size and input_width or use linear"
            )
        return grid

    def _pooled(self, features: Features) -> Tensor:
        if self.kind == "conv":
            h, w = self.checked(features.grid)
            return self.convs(features.after[:, 1:].transpose(1, 2).unflatten(2, (h, w))).mean((2, 3))
        if self.kind.startswith("linear2"):
            return torch.cat([features.before[:, 0], features.after[:, 0]], dim=1)
        return features.after[:, 0]


def _conv2x2(incoming: int, outgoing: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(incoming, outgoing, 2), nn.ReLU())


# The parameters `mask_head` and `score_head` choose among these. A mask head is made by (kind, width, stride,
# mask_stride) and called with (features, size), a score head by (kind, width) and called with (features).
MASK_HEADS = dict.fromkeys(("concat", "last", "concat_cls"), MaskHead)
SCORE_HEADS = dict.fromkeys(("linear", "linear2", "conv", "linear_cls", "linear2_cls"), ScoreHead)
