"""Mask heads and score heads over the encoder's features.

Widths follow the encoder's width d and reproduce the reference at d = 1024; the number of upsampling steps
follows from the encoder's stride and `mask_stride`. All heads end in float32 values in 0..1.
"""

import itertools
import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.config import Experiment
from lib.distributed import sum_over_ranks, world_size
from lib.errors import InputError
from lib.model.encoders.encoder import Encoder, Features, as_map
from lib.model.rahf import RahfMaskHead, RahfScoreHead
from lib.scale import HEATMAP_LEVELS, SCORE_LEVELS


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the rows (and places) of all ranks, on any device.

    With 3 or 4 images on a GPU the statistics of one rank are noise. A batch that is a single value a channel in all
    has no variance: it is normalised with the running statistics. (torch's SyncBatchNorm works on accelerators only.)
    """

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # [B, C] and [B, C, H, W] alike

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C] or [B, C, H, W] -> the same; B may be 0 on a rank that only takes part."""
        if not self.training:
            return super().forward(x)
        x = x.float()
        values = x.transpose(0, 1).flatten(1)  # [C, values of a channel]
        if world_size() == 1 and values.shape[1] > 1:
            return super().forward(x)
        total = sum_over_ranks(torch.cat([x.new_full((1,), values.shape[1]), values.sum(1)]))
        count = total[0].detach()
        several, count = count > 1, count.clamp(min=1)  # not `if`, which would wait for the device
        mean = total[1:] / count
        variance = sum_over_ranks((values - mean[:, None]).square().sum(1)) / count
        with torch.no_grad():
            momentum = self.momentum * several
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)
            self.num_batches_tracked.add_(several)
        mean = mean.where(several, self.running_mean)
        variance = variance.where(several, self.running_var)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        shape = (1, -1, *[1] * (x.ndim - 2))
        return x * scale.view(shape) + (self.bias - mean * scale).view(shape)


class MaskHead(nn.Module):
    """Features -> heatmap [B, H, W] in 0..1.

    `concat`: projected image tokens beside encoded ones (2d channels); `last`: encoded ones only; `concat_cls`:
    as concat, but five soft classes (no, one, ... four annotators) averaged by probability.
    """

    def __init__(self, config: Experiment, encoder: Encoder):
        super().__init__()
        self.kind, width = config.mask_head, encoder.width
        steps = _doublings(encoder.stride, config.mask_stride)
        ladder = [width // 2, *(max(8, width // share) for share in (4, 4, 8, 16, *[32] * max(1, steps - 4)))]
        incoming = width if self.kind == "last" else 2 * width
        norm = {"group": _group_norm, "batch": GlobalBatchNorm}[config.mask_norm]
        self.fuse = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), norm(b), nn.ReLU())
                for a, b in itertools.pairwise((incoming, width, width // 2))
            )
        )
        self.up = nn.Sequential(*(_up_step(ladder[k], ladder[k + 1], norm, config.align_corners) for k in range(steps)))
        self.out = nn.Conv2d(ladder[steps], len(HEATMAP_LEVELS) if self.kind == "concat_cls" else 1, 3, padding=1)
        self.register_buffer("levels", torch.tensor(HEATMAP_LEVELS) / 255, persistent=False)

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """-> float32 [B, *size]."""
        tokens = features.after if self.kind == "last" else torch.cat([features.before, features.after], dim=2)
        logits = self.out(self.up(self.fuse(as_map(tokens, features.grid)))).float()
        if logits.shape[-2:] != size:
            shrinks = size[0] < logits.shape[-2] or size[1] < logits.shape[-1]
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
        if self.kind == "concat_cls":
            # A product and a sum: autocast would run einsum and matmul in half precision.
            return (logits.softmax(1) * self.levels[:, None, None]).sum(1)
        return logits.squeeze(1).sigmoid()


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


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


def _up_step(incoming: int, outgoing: int, norm, align_corners: bool) -> nn.Module:
    layers = {
        "conv": nn.Conv2d(incoming, outgoing, 3, padding=1),
        "up": nn.Upsample(scale_factor=2, mode="bilinear", align_corners=align_corners),
        "norm": norm(outgoing),
        "relu": nn.ReLU(),
    }
    return nn.Sequential(OrderedDict(layers))


class ScoreHead(nn.Module):
    """Features -> score [B] in 0..1 (0 is mos 1, 1 is mos 5).

    `linear`: the encoded pooled token; `linear2`: the pooled token before and after the encoder; `*_cls`: thirteen
    soft classes averaged by probability; `conv`: four 2x2 convolutions with norms over both maps, flattened, for one
    input size; `conv_mean`: four without norms over the encoded map, averaged.
    """

    def __init__(self, config: Experiment, encoder: Encoder):
        super().__init__()
        self.kind, width = config.score_head, encoder.width
        self.one_grid = self.kind == "conv"
        incoming = 2 * width if self.kind.startswith("linear2") else width
        if self.kind.startswith("conv"):
            mean, grid = self.kind == "conv_mean", encoder.grid(*config.input_shape)
            widths = [width if mean else 2 * width, width, *(max(8, width // share) for share in (2, 8, 16))]
            layers = lambda a, b: [nn.Conv2d(a, b, 2), *([] if mean else [GlobalBatchNorm(b)]), nn.ReLU()]  # noqa: E731
            self.convs = nn.Sequential(*(nn.Sequential(*layers(a, b)) for a, b in itertools.pairwise(widths)))
            incoming = widths[-1] * (1 if mean else (grid[0] - 4) * (grid[1] - 4))
        classes = len(SCORE_LEVELS) if self.kind.endswith("_cls") else 1
        self.mlp = nn.Sequential(
            nn.Linear(incoming, 2 * width), GlobalBatchNorm(2 * width), nn.ReLU(),
            nn.Linear(2 * width, width), GlobalBatchNorm(width), nn.ReLU(),
            nn.Linear(width, classes),
        )  # fmt: skip
        self.register_buffer("levels", torch.tensor(SCORE_LEVELS), persistent=False)

    def forward(self, features: Features) -> Tensor:
        """-> float32 [B]."""
        logits = self.mlp(self._read(features)).float()
        if self.kind.endswith("_cls"):
            return (logits.softmax(1) * self.levels).sum(1)  # not @: see MaskHead
        return logits.squeeze(1).sigmoid()

    def _read(self, features: Features) -> Tensor:
        """What the linear layers read, [B, C]."""
        if self.kind.startswith("linear2"):
            return torch.cat([features.before[:, 0], features.after[:, 0]], dim=1)
        if self.kind.startswith("linear"):
            return features.after[:, 0]
        if self.kind == "conv_mean":
            return self.convs(as_map(features.after, features.grid)).mean((2, 3))
        return self.convs(as_map(torch.cat([features.before, features.after], 2), features.grid)).flatten(1)


# The parameters `mask_head` and `score_head` choose among these. A head is made by (config, encoder); a mask head is
# called with (features, size), a score head with (features). `one_grid` says that it reads no grid but the training's.
MASK_HEADS = {**dict.fromkeys(("concat", "last", "concat_cls"), MaskHead), "rahf": RahfMaskHead}
SCORE_HEADS = {
    **dict.fromkeys(("linear", "linear2", "conv", "linear_cls", "linear2_cls", "conv_mean"), ScoreHead),
    "rahf": RahfScoreHead,
}
