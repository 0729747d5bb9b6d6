"""Losses as pure functions, and the two composites built from strings such as `mse-plcc-srcc`.

Every loss is computed in float32 whatever autocast does around it. Mask losses return one value an image, so
that a caller can weight images across micro-batches and ranks; score losses need the whole global batch.
Formulas and names: the reference recipe (2nd place, NTIRE 2025), with the shape errors of its code mended;
`binary_dice` is the kit's own.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SRCC_WEIGHT = 0.3  # of the reference recipe
SMOOTH = 1.0  # pixels added above and below in the Dice coefficients
SMALLEST_SPREAD = 1e-3  # scores in 0..1 closer than this (0.004 mos) count as equal in plcc


def mask_mse(heatmap: Tensor, target: Tensor) -> Tensor:
    """Mean squared error an image. [B, H, W] in 0..1, twice -> [B]."""
    return (heatmap - target).square().flatten(1).mean(1)


def mask_bce(heatmap: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy an image against soft targets. [B, H, W] in 0..1, twice -> [B]."""
    # torch refuses NaN here (on a GPU the process is lost); as a loss of NaN it is met by `nonfinite` like any other.
    loss = F.binary_cross_entropy(heatmap.nan_to_num(), target, reduction="none")
    return loss.where(heatmap.isfinite(), heatmap).flatten(1).mean(1)


def dice(heatmap: Tensor, target: Tensor) -> Tensor:
    """1 - Dice coefficient an image; the label stays soft, the sums are plain. [B, H, W] in 0..1, twice -> [B]."""
    return _dice(heatmap, target, heatmap.flatten(1).sum(1) + target.flatten(1).sum(1))


def soft_dice(heatmap: Tensor, target: Tensor) -> Tensor:
    """As `dice` with the sums of squares below: 0 for a perfect soft prediction. [B, H, W], twice -> [B]."""
    return _dice(heatmap, target, (heatmap.square() + target.square()).flatten(1).sum(1))


def binary_dice(heatmap: Tensor, target: Tensor) -> Tensor:
    """As `dice` against the region `target > 0`, whoever marked it. [B, H, W], twice -> [B]."""
    return dice(heatmap, (target > 0).to(heatmap.dtype))


def _dice(heatmap: Tensor, target: Tensor, sums: Tensor) -> Tensor:
    overlap = (heatmap * target).flatten(1).sum(1)
    return 1 - (2 * overlap + SMOOTH) / (sums + SMOOTH)


def score_mse(score: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of scores in 0..1. [N], [N] -> scalar."""
    return F.mse_loss(score, target)


def plcc(score: Tensor, target: Tensor) -> Tensor:
    """Linear-correlation loss. [N], [N] -> scalar; about 0 at a correlation of 1, 3/8 at 0, 1/2 at -1.

    With z-scored predictions p, z-scored labels t and rho their mean product: the mean of MSE(p, t) / 4 and
    MSE(rho p, t) / 4. Z-scores divide by the standard deviation plus 1e-5. Predictions that (nearly) coincide are
    divided by SMALLEST_SPREAD instead of their standard deviation, which bounds the gradient. Labels that are all
    equal have no correlation to learn: 0, without gradient.
    """
    if len(score) < 2:
        return score.sum() * 0
    p, t = (values - values.mean() for values in (score, target))
    # The clamp is inside the root, whose derivative at 0 is infinite.
    p = p / (p.square().mean().clamp(min=SMALLEST_SPREAD**2).sqrt() + 1e-5)
    t = t / (t.square().mean().sqrt() + 1e-5)
    rho = (p * t).mean()
    # Not `if`, which would wait for the device.
    return (F.mse_loss(p, t) + F.mse_loss(rho * p, t)) / 8 * (target.max() > target.min())


def srcc(score: Tensor, target: Tensor) -> Tensor:
    """Rank-correlation loss: a hinge over all ordered pairs, normalised. [N], [N] -> scalar in 0..1.

    For a pair (i, j) the hinge is max(0, (s_j - s_i) sign(t_i - t_j)): how far the predictions are in the wrong
    order. It is averaged over all pairs and divided by 1 + its maximum. Equal predictions are not in the wrong
    order, so a constant gives 0 like a perfect order: use it beside mse or plcc.
    """
    order = torch.sign(target[:, None] - target[None, :])
    hinge = torch.relu((score[None, :] - score[:, None]) * order)
    return hinge.sum() / max(1, len(score) * (len(score) - 1)) / (1 + hinge.max()) if len(score) else hinge.sum()


MASK_LOSSES = {"mse": mask_mse, "dice": dice, "soft_dice": soft_dice, "bce": mask_bce, "binary_dice": binary_dice}
SCORE_LOSSES = {"mse": (score_mse, 1.0), "plcc": (plcc, 1.0), "srcc": (srcc, SRCC_WEIGHT)}


def mask_loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """`"dice-mse"` -> function of (heatmap [B, H, W], target [B, H, W]) -> [B], the sum of the terms."""
    terms = [MASK_LOSSES[term] for term in name.split("-")]

    def loss(heatmap: Tensor, target: Tensor) -> Tensor:
        _same_shape(heatmap, target, dims=3)
        with torch.autocast(heatmap.device.type, enabled=False):
            return sum(term(heatmap.float(), target.float()) for term in terms)

    return loss


def score_loss(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """`"mse-plcc-srcc"` -> function of (score [N], target [N]) -> scalar; labels that are NaN do not count.

    Labels may lie on the host: then nothing waits for the device.
    """
    terms = [SCORE_LOSSES[term] for term in name.split("-")]

    def loss(score: Tensor, target: Tensor) -> Tensor:
        _same_shape(score, target, dims=1)
        known = (~target.isnan()).nonzero().flatten()
        if len(known) == 0:
            return score.float().sum() * 0
        if len(known) < len(target):
            score, target = score[known.to(score.device)], target[known]
        with torch.autocast(score.device.type, enabled=False):
            score, target = score.float(), target.float().to(score.device, non_blocking=True)
            return sum(weight * term(score, target) for term, weight in terms)

    return loss


def needs_global_batch(name: str) -> bool:
    """Whether the score loss compares images with each other, so that no micro-batch may be treated alone."""
    return name != "mse"  # a mean over images adds up over micro-batches


def _same_shape(a: Tensor, b: Tensor, dims: int) -> None:
    # [B, 1] against [B] would broadcast to all pairs: the reference's score loss did.
    if a.shape != b.shape or a.ndim != dims:
        raise ValueError(f"prediction {tuple(a.shape)} and label {tuple(b.shape)} must have the same {dims}-d shape")
