"""Losses: hand-computed values, the order of good and bad predictions, shapes, precision, gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.errors import InputError
from lib.model.losses import mask_loss, needs_global_batch, plcc, score_loss, srcc

LABELS = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
EVERY_MASK_LOSS = ["mse", "dice", "soft_dice", "bce", "dice-mse", "bce-dice", "mse-dice-soft_dice-bce"]


def grid(*rows) -> torch.Tensor:
    return torch.tensor([rows], dtype=torch.float32)  # [1, H, W]


@pytest.mark.parametrize(
    "name, expected",
    [
        # heatmap (0.5, 0.25; 0, 1) against the label (1, 0.25; 0, 0)
        ("mse", (0.25 + 0 + 0 + 1) / 4),
        # region of the label: two pixels; overlap 0.5 + 0.25, sums 1.75 and 2
        ("dice", 1 - (2 * 0.75 + 1) / (1.75 + 2 + 1)),
        # soft overlap 0.5 + 0.0625, sums 1.75 and 1.25
        ("soft_dice", 1 - (2 * 0.5625 + 1) / (1.75 + 1.25 + 1)),
    ],
)
def test_mask_losses_by_hand(name, expected):
    heatmap, label = grid([0.5, 0.25], [0, 1]), grid([1, 0.25], [0, 0])
    assert mask_loss(name)(heatmap, label).tolist() == pytest.approx([expected])


def test_bce_by_hand_with_a_soft_label():
    value = mask_loss("bce")(grid([0.5, 0.8]), grid([1, 0.25]))
    expected = (-math.log(0.5) - 0.25 * math.log(0.8) - 0.75 * math.log(0.2)) / 2
    assert value.tolist() == pytest.approx([expected])


def test_mask_losses_add_up_and_keep_images_apart():
    heatmap, label = torch.rand(3, 4, 4), torch.rand(3, 4, 4)
    together = mask_loss("dice-mse")(heatmap, label)
    assert together.shape == (3,)
    torch.testing.assert_close(together, mask_loss("dice")(heatmap, label) + mask_loss("mse")(heatmap, label))
    for i in range(3):
        torch.testing.assert_close(mask_loss("dice-mse")(heatmap[i : i + 1], label[i : i + 1])[0], together[i])


@pytest.mark.parametrize("name", EVERY_MASK_LOSS)
def test_a_better_mask_has_a_lower_loss(name):
    label = torch.zeros(1, 16, 16)
    label[:, 4:12, 4:12] = 1
    perfect, constant, reversed_ = label.clone(), torch.full_like(label, 0.25), 1 - label
    values = [mask_loss(name)(heatmap, label).item() for heatmap in (perfect, constant, reversed_)]
    assert values[0] < values[1] < values[2]
    assert values[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", EVERY_MASK_LOSS)
@pytest.mark.parametrize("logit", [-40.0, 0.0, 40.0])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_mask_gradients_are_finite_at_saturated_predictions(name, logit, label):
    logits = torch.full((2, 4, 4), logit, requires_grad=True)
    loss = mask_loss(name)(logits.sigmoid(), torch.full((2, 4, 4), label)).sum()
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_an_empty_label_is_learnt_by_dice():
    heatmap = torch.full((1, 4, 4), 0.5, requires_grad=True)
    mask_loss("dice")(heatmap, torch.zeros(1, 4, 4)).sum().backward()
    assert (heatmap.grad > 0).all()  # a sound image pulls the heatmap down


def test_score_mse_by_hand():
    assert score_loss("mse")(torch.tensor([0.5, 0.0]), torch.tensor([0.25, 1.0])).item() == pytest.approx(
        (0.0625 + 1) / 2
    )


def correlated(rho: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions whose correlation with the labels is exactly `rho`, at another scale and offset."""
    t, across = torch.tensor([1.0, 1, -1, -1]), torch.tensor([1.0, -1, 1, -1])  # orthogonal, mean 0, variance 1
    return 0.4 + 0.05 * (rho * t + math.sqrt(1 - rho**2) * across), 0.5 + 0.2 * t


@pytest.mark.parametrize("rho", [-1.0, -0.6, 0.0, 0.3, 0.8, 1.0])
def test_plcc_follows_its_formula(rho):
    # MSE(p, t) = 2 - 2 rho and MSE(rho p, t) = 1 - rho^2 for z-scores; each counts a quarter, of which the mean.
    expected = ((2 - 2 * rho) / 4 + (1 - rho**2) / 4) / 2
    assert plcc(*correlated(rho)).item() == pytest.approx(expected, abs=2e-6)


def test_plcc_of_nearly_equal_predictions_is_finite_and_lies_between():
    score = torch.full((5,), 0.7, requires_grad=True)
    loss = plcc(score, LABELS)
    loss.backward()
    assert plcc(LABELS, LABELS) < loss < plcc(1 - LABELS, LABELS)
    assert loss.item() == pytest.approx(0.25, abs=1e-4)
    assert score.grad.isfinite().all() and score.grad.abs().max() < 1000
    assert (score.grad * (LABELS - LABELS.mean())).sum() < 0  # a step downhill makes them correlate


def test_srcc_by_hand():
    # labels 0 < 0.5 < 1, predictions 0.2, 0.8, 0.3: only the pair (second, third) is in the wrong order, by 0.5,
    # and it counts in both directions, of 6 ordered pairs. The maximum is 0.5.
    value = srcc(torch.tensor([0.2, 0.8, 0.3]), torch.tensor([0.0, 0.5, 1.0]))
    assert value.item() == pytest.approx(2 * (0.5 / 1.5) / 6)
    # As part of a sum it has the recipe's weight.
    named = score_loss("srcc")(torch.tensor([0.2, 0.8, 0.3]), torch.tensor([0.0, 0.5, 1.0]))
    assert named.item() == pytest.approx(0.3 * value.item())


def test_srcc_ignores_pairs_with_equal_labels():
    labels = torch.tensor([0.0, 0.0, 1.0])
    assert srcc(torch.tensor([0.1, 0.9, 0.5]), labels).item() == pytest.approx(2 * (0.4 / 1.4) / 4)
    assert srcc(torch.tensor([0.9, 0.1]), labels[:2]).item() == 0


def test_srcc_of_a_perfect_order_is_zero_whatever_the_distances():
    assert srcc(torch.tensor([0.1, 0.11, 0.12, 0.5, 0.9]), LABELS).item() == 0
    assert srcc(1 - LABELS, LABELS).item() > 0.1


@pytest.mark.parametrize("name", ["mse", "plcc", "mse-plcc", "mse-srcc", "mse-plcc-srcc"])
def test_perfect_constant_reversed_scores(name):
    loss = score_loss(name)
    perfect, constant, reversed_ = (loss(s, LABELS).item() for s in (LABELS, torch.full((5,), 0.5), 1 - LABELS))
    assert perfect < constant < reversed_
    assert perfect == pytest.approx(0, abs=1e-6)


def test_a_batch_mean_does_not_beat_a_perfect_prediction():
    # The reference compared [B, 1] with [B]: all pairs, for which the mean is best.
    with pytest.raises(ValueError, match=r"\(5, 1\).*\(5,\)"):
        score_loss("mse")(LABELS[:, None], LABELS)
    with pytest.raises(ValueError, match="1-d"):
        score_loss("mse-plcc-srcc")(LABELS[:, None], LABELS[:, None])
    with pytest.raises(ValueError, match="3-d"):
        mask_loss("mse")(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="3-d"):
        mask_loss("mse")(torch.zeros(2, 4, 4), torch.zeros(1, 4, 4))


@pytest.mark.parametrize("name", ["mse", "plcc", "srcc", "mse-plcc-srcc"])
def test_labels_that_are_nan_do_not_count(name):
    score = torch.tensor([0.3, 0.9, 0.6, 0.1], requires_grad=True)
    label = torch.tensor([0.25, math.nan, 0.0, 0.5])
    loss = score_loss(name)(score, label)
    known = [0, 2, 3]
    assert loss.item() == pytest.approx(score_loss(name)(score[known], label[known]).item())
    loss.backward()
    assert score.grad[1] == 0 and score.grad.isfinite().all()


@pytest.mark.parametrize("name", ["mse", "plcc", "srcc", "mse-plcc-srcc"])
@pytest.mark.parametrize(
    "score, label",
    [
        ([0.5, 0.5, 0.5], [0.0, 0.5, 1.0]),
        ([0.1, 0.5, 0.9], [0.4, 0.4, 0.4]),
        ([0.5, 0.5, 0.5], [0.1, 0.1, 0.1]),
        ([0.5], [1.0]),
        ([0.5, 0.7], [math.nan, math.nan]),
        ([0.5, 0.7], [math.nan, 1.0]),
        ([], []),
    ],
)
def test_score_gradients_are_finite(name, score, label):
    score = torch.tensor(score, requires_grad=True)
    loss = score_loss(name)(score, torch.tensor(label))
    loss.backward()
    assert loss.isfinite() and score.grad.isfinite().all()


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 0.9])
@pytest.mark.parametrize("n", [3, 7, 32])
def test_equal_labels_have_no_correlation_whatever_rounding_says(value, n):
    score = torch.linspace(0, 1, n, requires_grad=True)
    loss = plcc(score, torch.full((n,), value))
    loss.backward()
    assert loss.item() == 0 and (score.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    heatmap, target = (torch.rand(2, 64, 64, generator=generator) for _ in range(2))
    score, label = (torch.rand(8, generator=generator) for _ in range(2))
    half = heatmap.to(dtype), score.to(dtype)
    for name in EVERY_MASK_LOSS:
        expected = mask_loss(name)(half[0].float(), target)
        with torch.autocast("cpu", dtype=dtype):
            found = mask_loss(name)(half[0], target)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    expected = score_loss("mse-plcc-srcc")(half[1].float(), label)
    with torch.autocast("cpu", dtype=dtype):
        found = score_loss("mse-plcc-srcc")(half[1], label)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@given(st.integers(0, 2**31), st.integers(2, 12))
def test_the_order_of_a_batch_does_not_matter(seed, n):
    rng = np.random.default_rng(seed)
    score = torch.tensor(rng.random(n), dtype=torch.float32)
    label = torch.tensor(rng.integers(0, 13, n) / 12, dtype=torch.float32)
    order = torch.tensor(rng.permutation(n))
    for name in ("mse", "plcc", "srcc"):
        torch.testing.assert_close(score_loss(name)(score[order], label[order]), score_loss(name)(score, label))


@given(st.integers(0, 2**31), st.floats(0.02, 1), st.floats(-0.5, 0.5))
def test_plcc_does_not_see_scale_and_offset(seed, scale, offset):
    rng = np.random.default_rng(seed)
    score, label = torch.tensor(rng.permutation(8) / 8.0).float(), torch.tensor(rng.permutation(8) / 8.0).float()
    torch.testing.assert_close(plcc(score * scale + offset, label), plcc(score, label), atol=1e-4, rtol=1e-3)


def test_gradcheck_of_the_score_losses():
    score = torch.tensor([0.31, 0.92, 0.55, 0.13], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0.25, 0.5, 0.75, 0.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: plcc(s, label), score)
    loss = srcc(score, label)
    (gradient,) = torch.autograd.grad(loss, score)
    # One wrong pair (0.92 before 0.55): both move together, twice over 12 ordered pairs; the scale is held fixed.
    expected = 2 / 12 / (1 + 0.92 - 0.55)
    assert gradient.tolist() == pytest.approx([0, expected, -expected, 0])


@pytest.mark.parametrize("name", ["", "mse-", "mes", "mse-mse", "mse_dice"])
def test_unknown_terms_are_refused(name):
    for key, make in (("mask_loss", mask_loss), ("score_loss", score_loss), ("score_loss", needs_global_batch)):
        with pytest.raises(InputError, match=f"{key}: {name!r}.*mse"):
            make(name)


def test_which_losses_compare_images():
    assert not needs_global_batch("mse")
    assert needs_global_batch("plcc") and needs_global_batch("mse-srcc")
