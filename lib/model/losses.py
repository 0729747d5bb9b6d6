"""Losses as pure functions, and the two composites built from strings such as `mse-plcc-srcc`.

Every loss is computed in float32 whatever autocast does around it. Mask losses return one value an image, so
that a caller can weight images across micro-batches and ranks; score losses need the whole global batch.
Formulas: the reference recipe (2nd place, NTIRE 2025), with the shape errors of its code mended.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.errors import InputError

SRCC_WEIGHT = 0.3  # of the reference recipe
SMALLEST_SPREAD = 1e-3  # scores in 0..1 closer than this (0.004 mos) count as equal in plcc


def mask_mse(heatmap: Tensor, target: Tensor) -> Tensor:
    """Mean squared error an image. [B, H, W] in 0..1, twice -> [B]."""
    return (heatmap - target).square().flatten(1).mean(1)


def mask_bce(heatmap: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy an image against soft targets. [B, H, W] in 0..1, twice -> [B]."""
    return F.binary_cross_entropy(heatmap, target, reduction="none").flatten(1).mean(1)


def dice(heatmap: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - Dice coefficient an image against the binary region `target > 0`. [B, H, W], twice -> [B]."""
    return soft_dice(heatmap, (target > 0).to(heatmap.dtype), smooth)


def soft_dice(heatmap: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - Dice coefficient an image against the soft target itself (agreement counts). [B, H, W], twice -> [B]."""
    heatmap, target = heatmap.flatten(1), target.flatten(1)
    overlap = (heatmap * target).sum(1)
    return 1 - (2 * overlap + smooth) / (heatmap.sum(1) + target.sum(1) + smooth)


def score_mse(score: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of scores in 0..1. [N], [N] -> scalar."""
    return F.mse_loss(score, target)


def plcc(score: Tensor, target: Tensor) -> Tensor:
    """Linear-correlation loss. [N], [N] -> scalar; 0 at a correlation of 1, 3/8 at 0, 1/2 at -1.

    With z-scored predictions p, z-scored labels t and rho their mean product: the mean of MSE(p, t) / 4 and
    MSE(rho p, t) / 4. Predictions that (nearly) coincide are divided by SMALLEST_SPREAD instead of their standard
    deviation, which bounds the gradient; all equal they give 1/4. Labels that are all equal have no correlation
    to learn: 0, without gradient.
    """
    if len(score) < 2 or target.max() == target.min():
        return score.sum() * 0
    p, t = (values - values.mean() for values in (score, target))
    # The clamp is inside the root, whose derivative at 0 is infinite.
    p, t = p / p.square().mean().clamp(min=SMALLEST_SPREAD**2).sqrt(), t / t.square().mean().sqrt()
    rho = (p * t).mean()
    return (F.mse_loss(p, t) + F.mse_loss(rho * p, t)) / 8


def srcc(score: Tensor, target: Tensor) -> Tensor:
    """Rank-correlation loss: a hinge over all ordered pairs, normalised. [N], [N] -> scalar in 0..1.

    For a pair (i, j) the hinge is max(0, (s_j - s_i) sign(t_i - t_j)): how far the predictions are in the wrong
    order. It is divided by 1 + its maximum and averaged over the pairs whose labels differ. Equal predictions
    are not in the wrong order, so a constant gives 0 like a perfect order: use it beside mse or plcc.
    """
    order = torch.sign(target[:, None] - target[None, :])
    hinge = torch.relu((score[None, :] - score[:, None]) * order)
    return hinge.sum() / (1 + hinge.detach().max()) / order.abs().sum().clamp(min=1)


MASK_LOSSES = {"mse": mask_mse, "dice": dice, "soft_dice": soft_dice, "bce": mask_bce}
SCORE_LOSSES = {"mse": (score_mse, 1.0), "plcc": (plcc, 1.0), "srcc": (srcc, SRCC_WEIGHT)}
SEPARABLE = {"mse"}  # a mean over images: micro-batches can be added up without seeing each other


def mask_loss(name: str):
    """`"dice-mse"` -> function of (heatmap [B, H, W], target [B, H, W]) -> [B], the sum of the terms."""
    terms = [MASK_LOSSES[term] for term in _terms(name, MASK_LOSSES, "mask_loss")]
    return partial(_sum_of_mask_terms, terms)


def score_loss(name: str):
    """`"mse-plcc-srcc"` -> function of (score [N], target [N]) -> scalar; labels that are NaN do not count."""
    terms = [SCORE_LOSSES[term] for term in _terms(name, SCORE_LOSSES, "score_loss")]
    return partial(_sum_of_score_terms, terms)


def needs_global_batch(name: str) -> bool:
    """Whether the score loss compares images with each other, so that no micro-batch may be treated alone."""
    return not set(_terms(name, SCORE_LOSSES, "score_loss")) <= SEPARABLE


def _sum_of_mask_terms(terms, heatmap: Tensor, target: Tensor) -> Tensor:
    _same_shape(heatmap, target, dims=3)
    with torch.autocast(heatmap.device.type, enabled=False):
        return sum(term(heatmap.float(), target.float()) for term in terms)


def _sum_of_score_terms(terms, score: Tensor, target: Tensor) -> Tensor:
    _same_shape(score, target, dims=1)
    known = ~target.isnan()
    if not known.any():
        return score.float().sum() * 0
    with torch.autocast(score.device.type, enabled=False):
        score, target = score[known].float(), target[known].float()
        return sum(weight * term(score, target) for term, weight in terms)


def _same_shape(a: Tensor, b: Tensor, dims: int) -> None:
    # [B, 1] against [B] would broadcast to all pairs: the reference's score loss did.
    if a.shape != b.shape or a.ndim != dims:
        raise ValueError(f"prediction {tuple(a.shape)} and label {tuple(b.shape)} must have the same {dims}-d shape")


def _terms(name: str, known: dict, key: str) -> list[str]:
    terms = name.split("-")
    unknown = [term for term in terms if term not in known]
    if unknown or len(set(terms)) < len(terms):
        raise InputError(f"{key}: {name!r} must join different terms of {', '.join(known)} with -")
    return terms
