"""Losses: the reference's values, hand-computed ones, the order of good and bad predictions, gradients."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.model.losses import MASK_LOSSES, mask_loss, plcc, score_loss, srcc

REFERENCE = Path(__file__).parent / "golden" / "reference"
LABELS = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])


def test_all_values_of_the_reference():
    """Computed by the reference's own code (losses.json says how); its srcc stands there without the weight 0.3."""
    arrays = np.load(REFERENCE / "losses.npz")
    for case in json.loads((REFERENCE / "losses.json").read_text())["cases"]:
        heatmap, label, score, score_label = (
            torch.from_numpy(arrays[f"{case['case']}.{name}"]) for name in ("heatmap", "label", "score", "score_label")
        )
        for name, expected in case["mask"].items():
            assert mask_loss(name)(heatmap, label).mean().item() == pytest.approx(expected, abs=1e-6), (case, name)
        for name, expected in case["score"].items():
            found = score_loss(name)(score, score_label).item() / (0.3 if name == "srcc" else 1)
            assert found == pytest.approx(expected, abs=1e-6), (case, name)


def test_losses_by_hand():
    heatmap, label = torch.tensor([[[0.5, 0.25], [0, 1]]]), torch.tensor([[[1, 0.25], [0, 0]]])
    for name, expected in {
        "mse": (0.25 + 0 + 0 + 1) / 4,
        "dice": 1 - (2 * 0.5625 + 1) / (1.75 + 1.25 + 1),
        "soft_dice": 1 - (2 * 0.5625 + 1) / (1.3125 + 1.0625 + 1),
        "binary_dice": 1 - (2 * 0.75 + 1) / (1.75 + 2 + 1),
        "bce": (-math.log(0.5) - 0.25 * math.log(0.25) - 0.75 * math.log(0.75) + 0 + 100) / 4,
    }.items():
        assert mask_loss(name)(heatmap, label).tolist() == pytest.approx([expected]), name
    # labels 0 < 0.5 < 1, predictions 0.2, 0.8, 0.3: only the pair (second, third) is in the wrong order, by 0.5,
    # and it counts in both directions, of 6 ordered pairs. The maximum is 0.5.
    found = srcc(torch.tensor([0.2, 0.8, 0.3]), torch.tensor([0.0, 0.5, 1.0])).item()
    assert found == pytest.approx(2 * (0.5 / 1.5) / 6)
    assert srcc(torch.tensor([0.1, 0.11, 0.12, 0.5, 0.9]), LABELS).item() == 0  # a perfect order


@pytest.mark.parametrize("name", [*MASK_LOSSES, "dice-mse", "bce-dice"])
def test_gradients_are_finite_at_saturated_predictions_and_a_heatmap_that_diverged_gives_nan(name):
    for label in (0.0, 1.0):
        logits = torch.tensor([-40.0, 0.0, 40.0])[:, None, None].repeat(1, 4, 4).requires_grad_()
        loss = mask_loss(name)(logits.sigmoid(), torch.full((3, 4, 4), label)).sum()
        loss.backward()
        assert loss.isfinite() and logits.grad.isfinite().all()
    heatmap = torch.full((2, 4, 4), 0.5)
    heatmap[1, 2, 3] = math.nan
    assert mask_loss(name)(heatmap, torch.zeros(2, 4, 4)).isnan().tolist() == [False, True]


def test_plcc_of_nearly_equal_predictions_has_a_bounded_gradient():
    score = torch.full((5,), 0.7, requires_grad=True)
    loss = plcc(score, LABELS)
    loss.backward()
    assert plcc(LABELS, LABELS) < loss < plcc(1 - LABELS, LABELS)
    assert score.grad.isfinite().all() and score.grad.abs().max() < 1000
    assert (score.grad * (LABELS - LABELS.mean())).sum() < 0  # a step downhill makes them correlate


def test_a_batch_mean_does_not_beat_a_perfect_prediction():
    # The reference compared [B, 1] with [B]: all pairs, for which the mean is best.
    with pytest.raises(ValueError, match=r"\(5, 1\).*\(5,\)"):
        score_loss("mse")(LABELS[:, None], LABELS)
    with pytest.raises(ValueError, match="1-d"):
        score_loss("mse-plcc-srcc")(LABELS[:, None], LABELS[:, None])
    with pytest.raises(ValueError, match="3-d"):
        mask_loss("mse")(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))


@pytest.mark.parametrize("name", ["mse", "plcc", "srcc", "mse-plcc-srcc"])
@given(
    score=st.lists(st.sampled_from([0.1, 0.5, 0.50001, 0.7, 0.9]), max_size=6),
    label=st.lists(st.sampled_from([0.0, 0.25, 0.7, math.nan]), min_size=6, max_size=6),
    seed=st.integers(0, 9),
)
def test_labels_that_are_nan_do_not_count_nor_does_the_order_and_gradients_are_finite(name, score, label, seed):
    """Also of equal predictions, equal labels, a single image or none."""
    score, label = torch.tensor(score, requires_grad=True), torch.tensor(label[: len(score)])
    known = ~label.isnan()
    known = known.nonzero().flatten()[torch.randperm(int(known.sum()), generator=torch.Generator().manual_seed(seed))]
    loss = score_loss(name)(score, label)
    torch.testing.assert_close(loss, score_loss(name)(score[known], label[known]))
    loss.backward()
    assert loss.isfinite() and score.grad.isfinite().all() and not score.grad[label.isnan()].any()
    if name == "plcc" and len(label[known].unique()) < 2:
        assert loss == 0 and not score.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    heatmap, score = torch.rand(2, 64, 64, generator=generator), torch.rand(8, generator=generator)
    for loss, values in [(mask_loss("dice-bce-mse"), heatmap), (score_loss("mse-plcc-srcc"), score)]:
        with torch.autocast("cpu", dtype=dtype):
            found = loss(values.to(dtype), values.flip(0))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, loss(values.to(dtype).float(), values.flip(0)), rtol=0, atol=0)
