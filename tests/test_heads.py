"""Heads: shapes and the reference's widths, what they read, soft classes, norms, precision."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib.config import Experiment
from lib.model.encoders.encoder import Features
from lib.model.heads import MASK_HEADS, SCORE_HEADS, SCORE_LEVELS, GlobalBatchNorm

ALTCLIP = json.loads((Path(__file__).parent / "golden" / "reference" / "altclip.json").read_text())
MASK_KINDS, SCORE_KINDS = list(MASK_HEADS), list(SCORE_HEADS)


def features(batch=2, width=32, grid=(6, 6), seed=0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 1 + grid[0] * grid[1], width)
    return Features(*(torch.randn(shape, generator=generator) for _ in range(2)), grid)


def mask_head(kind, width, stride, mask_stride=1, grid=(6, 6), **changes) -> nn.Module:
    encoder = SimpleNamespace(width=width, stride=stride, grid=lambda height, width: grid)
    return MASK_HEADS[kind](Experiment(mask_head=kind, mask_stride=mask_stride, **changes), encoder)


def score_head(kind, width, grid=(5, 5)) -> nn.Module:
    encoder = SimpleNamespace(width=width, grid=lambda height, width: grid)
    return SCORE_HEADS[kind](Experiment(score_head=kind), encoder)


def widths(module, kind) -> list[tuple[int, int]]:
    layers = [layer for layer in module.modules() if isinstance(layer, kind)]
    names = ("in_features", "out_features") if kind is nn.Linear else ("in_channels", "out_channels")
    return [tuple(getattr(layer, name) for name in names) for layer in layers]


def weights(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("kind", ["concat", "last", "concat_cls"])
def test_mask_head_shapes_for_every_mask_stride_and_size(kind):
    for stride, mask_stride in [(16, 1), (16, 8), (32, 32), (32, 1), (14, 7), (14, 4)]:
        head = mask_head(kind, 32, stride, mask_stride)
        for grid, size in [((3, 3), (3 * stride, 3 * stride)), ((2, 3), (20, 50))]:
            heatmap = head(features(grid=grid), size)
            assert heatmap.shape == (2, *size) and heatmap.dtype == torch.float32
            assert heatmap.min() >= 0 and heatmap.max() <= 1


def test_heads_have_the_reference_s_widths():
    ladder = [(512, 256), (256, 256), (256, 128), (128, 64), (64, 32)]
    with torch.device("meta"):
        for kind, first, out in (("concat", 2048, 1), ("last", 1024, 1), ("concat_cls", 2048, 5)):
            head = mask_head(kind, 1024, 32)
            assert widths(head, nn.Conv2d) == [(first, 1024), (1024, 512), *ladder, (32, out)]
            assert {conv.kernel_size for conv in head.modules() if isinstance(conv, nn.Conv2d)} == {(3, 3)}
        first = {"linear": 1024, "linear2": 2048, "linear_cls": 1024, "linear2_cls": 2048, "conv": 25600}
        for kind, incoming in first.items():
            head, out = score_head(kind, 1024, (24, 24)), 13 if kind.endswith("_cls") else 1
            assert widths(head, nn.Linear) == [(incoming, 2048), (2048, 1024), (1024, out)]
            convs = [(2048, 1024), (1024, 512), (512, 128), (128, 64)] if kind == "conv" else []
            assert widths(head, nn.Conv2d) == convs


def test_heads_of_the_organisers_baseline_have_its_layers():
    with torch.device("meta"):
        mask, score = mask_head("rahf", 1024, 14, grid=(32, 32)), score_head("rahf", 1024, (32, 32))
    assert weights(mask) == ALTCLIP["mask_head"]["parameters"]
    assert weights(score) == ALTCLIP["score_head"]["parameters"]
    assert widths(mask, nn.ConvTranspose2d) == [(step["from"], step["to"]) for step in ALTCLIP["mask_head"]["steps"]]


def test_heads_read_the_tokens_they_say():
    """Which of (pooled before, map before, pooled after, map after) moves the output."""
    expected = {
        **{kind: [0, 1, 0, 1] for kind in ("concat", "concat_cls", "conv")},
        **{kind: [0, 0, 0, 1] for kind in ("last", "conv_mean", "rahf")},
        **{kind: [0, 0, 1, 0] for kind in ("linear", "linear_cls")},
        **{kind: [1, 0, 1, 0] for kind in ("linear2", "linear2_cls")},
    }
    for kind in (*MASK_KINDS, *SCORE_KINDS):
        head = (mask_head(kind, 32, 16, grid=(5, 5)) if kind in MASK_KINDS else score_head(kind, 32)).eval()
        size = ((80, 80),) if kind in MASK_KINDS else ()
        torch.manual_seed(0)
        base, found = features(2, 32, (5, 5)), []
        for name, tokens in itertools.product(("before", "after"), (slice(0, 1), slice(1, None))):
            other = Features(base.before.clone(), base.after.clone(), base.grid)
            getattr(other, name)[:, tokens] += torch.randn(32)
            found.append(not torch.equal(head(base, *size), head(other, *size)))
        assert found == [bool(moves) for moves in expected[kind]], kind


def test_corners_are_those_asked_for():
    for corners in (False, True):
        step = mask_head("concat", 32, 16, align_corners=corners).up[0]
        step.conv, step.norm, given = nn.Identity(), nn.Identity(), torch.eye(2)[None, None]
        expected = nn.functional.interpolate(given, scale_factor=2, mode="bilinear", align_corners=corners)
        torch.testing.assert_close(step(given), expected)


def test_classes_are_averaged_by_probability():
    head = mask_head("concat_cls", 16, 16, 16)
    nn.init.zeros_(head.out.weight)
    head.out.bias.data = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.2]).log()
    expected = (0.1 * (64 + 127 + 180) + 0.2 * 255) / 255
    torch.testing.assert_close(head(features(1, 16, (2, 2)), (2, 2)), torch.full((1, 2, 2), expected))
    for kind in ("linear_cls", "linear2_cls"):
        head = score_head(kind, 16).eval()
        nn.init.zeros_(head.mlp[-1].weight)
        head.mlp[-1].bias.data = torch.full((13,), -50.0)
        head.mlp[-1].bias.data[[3, 6]] = torch.tensor([0.25, 0.75]).log()
        expected = 0.25 * SCORE_LEVELS[3] + 0.75 * SCORE_LEVELS[6]
        torch.testing.assert_close(head(features(2, 16)), torch.full((2,), expected))


@pytest.mark.parametrize("kind", [*MASK_KINDS, *SCORE_KINDS])
def test_heads_take_part_without_a_single_row(kind):
    """A rank that has no image left in an uneven last step still runs its share of the graph."""
    given = features(2, 32, (5, 5))
    none = Features(given.before[:0], given.after[:0].requires_grad_(), given.grid)
    masks = kind in MASK_KINDS
    head = mask_head(kind, 32, 16, 8, grid=(5, 5), mask_norm="batch") if masks else score_head(kind, 32)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    out = head(none, (48, 48)) if masks else head(none)
    assert out.shape == ((0, 48, 48) if masks else (0,))
    out.sum().backward()
    assert all((p.grad is None or not p.grad.any()) for p in head.parameters())
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_the_last_step_is_in_float32():
    given = features(2, 32, (5, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for kind in MASK_KINDS:
            heatmap = mask_head(kind, 32, 16, 8, grid=(5, 5))(given, (80, 80))
            # Half precision has 256 steps in 0.5..1: many more values mean that the last step was in float32.
            assert heatmap.dtype == torch.float32 and len(heatmap.unique()) > 1000
        for kind in SCORE_KINDS:
            assert score_head(kind, 32)(given).dtype == torch.float32


def test_a_single_row_is_normalised_with_the_running_statistics():
    norm, row = GlobalBatchNorm(3), torch.tensor([[1.0, -2.0, 3.0]])
    norm.running_mean.fill_(0.5)
    torch.testing.assert_close(norm(row), (row - 0.5) / (1 + norm.eps) ** 0.5)
    assert norm.num_batches_tracked == 0 and norm.running_mean.tolist() == [0.5] * 3
