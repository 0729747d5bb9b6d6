"""Heads: shapes for every kind and stride, the reference's widths, soft classes, BatchNorm, precision."""

import itertools

import pytest
import torch
from torch import nn

from lib.errors import InputError
from lib.model.encoders.encoder import Features
from lib.model.heads import HEATMAP_LEVELS, SCORE_LEVELS, GlobalBatchNorm1d, MaskHead, ScoreHead

MASK_KINDS = ["concat", "last", "concat_cls"]
SCORE_KINDS = ["linear", "linear2", "conv", "linear_cls", "linear2_cls"]


def features(batch=2, width=32, grid=(6, 6), seed=0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 1 + grid[0] * grid[1], width)
    return Features(*(torch.randn(shape, generator=generator) for _ in range(2)), grid)


def widths(module, kind) -> list[tuple[int, int]]:
    layers = [layer for layer in module.modules() if isinstance(layer, kind)]
    names = ("in_channels", "out_channels") if kind is nn.Conv2d else ("in_features", "out_features")
    return [tuple(getattr(layer, name) for name in names) for layer in layers]


@pytest.mark.parametrize("kind, stride", list(itertools.product(MASK_KINDS, [16, 32])))
def test_mask_head_shapes_for_every_mask_stride_and_size(kind, stride):
    for mask_stride in [2**k for k in range(6) if 2**k <= stride]:
        head = MaskHead(kind, 32, stride, mask_stride)
        at_head = []
        head.out.register_forward_hook(lambda *call, seen=at_head: seen.append(tuple(call[2].shape[-2:])))
        for grid, size in [((3, 3), (3 * stride, 3 * stride)), ((2, 3), (20, 50)), ((3, 2), (200, 200))]:
            heatmap = head(features(grid=grid), size)
            assert heatmap.shape == (2, *size) and heatmap.dtype == torch.float32
            assert heatmap.min() >= 0 and heatmap.max() <= 1
            assert at_head[-1] == (grid[0] * stride // mask_stride, grid[1] * stride // mask_stride)


@pytest.mark.parametrize("stride, mask_stride", [(32, 0), (32, 3), (32, 64), (16, 32), (14, 3), (16, -1)])
def test_mask_strides_that_cannot_be_reached(stride, mask_stride):
    with pytest.raises(InputError, match=rf"mask_stride: {mask_stride} cannot.* use {stride}, {stride // 2}"):
        MaskHead("concat", 32, stride, mask_stride)


def test_remedies_offered_for_mask_stride_work():
    with pytest.raises(InputError, match="use 14, 7, 4, 2, 1$"):
        MaskHead("concat", 32, 14, 3)
    for stride, steps in {14: 0, 7: 1, 4: 2, 2: 3, 1: 4}.items():
        assert len(MaskHead("concat", 32, 14, stride).up) == steps


def test_mask_head_has_the_reference_s_widths():
    with torch.device("meta"):
        head = MaskHead("concat", 1024, 32)
        last = MaskHead("last", 1024, 32)
    ladder = [(512, 256), (256, 256), (256, 128), (128, 64), (64, 32)]
    assert widths(head, nn.Conv2d) == [(2048, 1024), (1024, 512), *ladder, (32, 1)]
    assert widths(last, nn.Conv2d) == [(1024, 1024), (1024, 512), *ladder, (32, 1)]
    assert all(conv.kernel_size == (3, 3) for conv in head.modules() if isinstance(conv, nn.Conv2d))


@pytest.mark.parametrize(
    "kind, first, out, convs",
    [
        ("linear", 1024, 1, []),
        ("linear2", 2048, 1, []),
        ("linear_cls", 1024, 13, []),
        ("linear2_cls", 2048, 13, []),
        ("conv", 64, 1, [(1024, 1024), (1024, 512), (512, 128), (128, 64)]),
    ],
)
def test_score_head_has_the_reference_s_widths(kind, first, out, convs):
    with torch.device("meta"):
        head = ScoreHead(kind, 1024)
    assert widths(head, nn.Linear) == [(first, 2048), (2048, 1024), (1024, out)]
    assert widths(head, nn.Conv2d) == convs
    assert all(conv.kernel_size == (2, 2) for conv in head.convs.modules() if isinstance(conv, nn.Conv2d))


@pytest.mark.parametrize("width", [8, 16, 32, 128])
@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_score_head_shapes(kind, width):
    for training, grid in itertools.product((True, False), ((5, 5), (5, 8))):
        score = ScoreHead(kind, width).train(training)(features(3, width, grid))
        assert score.shape == (3,) and score.dtype == torch.float32
        assert score.min() >= 0 and score.max() <= 1


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("kind", MASK_KINDS)
def test_mask_head_of_a_narrow_encoder(kind, width):
    assert MaskHead(kind, width, 16)(features(1, width, (2, 2)), (32, 32)).shape == (1, 32, 32)


@pytest.mark.parametrize("grid", [(4, 4), (4, 9), (9, 4)])
def test_conv_head_refuses_a_small_grid(grid):
    head = ScoreHead("conv", 32)
    with pytest.raises(InputError, match=rf"score_head: conv .* 5x5 tokens, not {grid[0]}x{grid[1]}; raise input_size"):
        head(features(grid=grid))
    with pytest.raises(InputError):
        head.checked(grid)
    assert ScoreHead("linear", 32).checked(grid) == grid


def test_heads_read_the_tokens_they_say():
    """Which of (pooled before, map before, pooled after, map after) moves the output."""

    def moves(head, call):
        torch.manual_seed(0)
        base, found = features(2, 32, (5, 5)), []
        for name, tokens in itertools.product(("before", "after"), (slice(0, 1), slice(1, None))):
            other = Features(base.before.clone(), base.after.clone(), base.grid)
            getattr(other, name)[:, tokens] += torch.randn(32)
            found.append(not torch.equal(call(head, base), call(head, other)))
        return found

    expected_mask = {"concat": [0, 1, 0, 1], "concat_cls": [0, 1, 0, 1], "last": [0, 0, 0, 1]}
    for kind, expected in expected_mask.items():
        head = MaskHead(kind, 32, 16).eval()
        assert moves(head, lambda head, f: head(f, (80, 80))) == [bool(x) for x in expected], kind
    expected_score = {
        "linear": [0, 0, 1, 0], "linear_cls": [0, 0, 1, 0], "linear2": [1, 0, 1, 0], "linear2_cls": [1, 0, 1, 0],
        "conv": [0, 0, 0, 1],
    }  # fmt: skip
    for kind, expected in expected_score.items():
        head = ScoreHead(kind, 32).eval()
        assert moves(head, lambda head, f: head(f)) == [bool(x) for x in expected], kind


def test_the_map_is_laid_out_in_rows():
    """Token 1 + row x width + column lands at (row, column) of the heatmap."""
    head = MaskHead("last", 16, 16, 16).eval()
    base = features(1, 16, (4, 6))
    changed = Features(base.before, base.after.clone(), base.grid)
    changed.after[0, 1 + 1 * 6 + 4] += 5.0  # row 1, column 4
    # 1x1 receptive field: keep only the centre tap, and a norm would mix all places.
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    head.fuse = nn.Sequential(*(block[0] for block in head.fuse))
    moved = (head(changed, (4, 6)) - head(base, (4, 6))).abs()[0] > 1e-4
    assert moved.nonzero().tolist() == [[1, 4]]


def test_heatmap_classes_are_averaged_by_probability():
    assert HEATMAP_LEVELS == (0, 64, 127, 180, 255)
    head = MaskHead("concat_cls", 16, 16, 16)
    nn.init.zeros_(head.out.weight)
    head.out.bias.data = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.2]).log()
    heatmap = head(features(1, 16, (2, 2)), (2, 2))
    expected = (0.1 * (64 + 127 + 180) + 0.2 * 255) / 255
    torch.testing.assert_close(heatmap, torch.full((1, 2, 2), expected))


@pytest.mark.parametrize("kind", ["linear_cls", "linear2_cls"])
def test_score_classes_are_averaged_by_probability(kind):
    head = ScoreHead(kind, 16)
    nn.init.zeros_(head.mlp[-1].weight)
    probability = torch.full((13,), 1e-9)
    probability[3], probability[12] = 0.25, 0.75  # mos 2 and mos 5
    head.mlp[-1].bias.data = probability.log()
    torch.testing.assert_close(head(features(2, 16, (2, 2))), torch.full((2,), 0.25 * 0.25 + 0.75))
    assert [1 + 4 * level for level in SCORE_LEVELS] == pytest.approx([1 + third / 3 for third in range(13)])


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_a_head_of_zero_says_half(kind):
    head = MaskHead(kind, 16, 16)
    nn.init.zeros_(head.out.weight)
    nn.init.zeros_(head.out.bias)
    level = 0.5 if kind != "concat_cls" else sum(HEATMAP_LEVELS) / 5 / 255
    torch.testing.assert_close(head(features(1, 16, (2, 2)), (32, 32)), torch.full((1, 32, 32), level))


@pytest.mark.parametrize("training", [True, False])
def test_heads_end_in_float32_under_autocast(training):
    given = features(4, 32, (5, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for kind in MASK_KINDS:
            heatmap = MaskHead(kind, 32, 16, 8).train(training)(given, (80, 80))
            assert heatmap.dtype == torch.float32
            # Half precision has 256 steps in 0.5..1: many more values mean that the last step was in float32.
            assert len(heatmap.unique()) > 2000
        for kind in SCORE_KINDS:
            assert ScoreHead(kind, 32).train(training)(given).dtype == torch.float32


def test_a_heatmap_smaller_than_the_head_s_is_averaged_not_sampled():
    head = MaskHead("last", 16, 16, 1).eval()
    given = features(1, 16, (2, 2))
    logits = torch.logit(head(given, (32, 32)))
    small = torch.logit(head(given, (4, 4)))
    assert small.shape == (1, 4, 4)
    assert small.mean().item() == pytest.approx(logits.mean().item(), abs=0.02)
    assert small.std() < logits.std()


def batch_norms(channels=5, momentum=0.1):
    torch.manual_seed(3)
    ours, theirs = GlobalBatchNorm1d(channels, momentum=momentum), nn.BatchNorm1d(channels, momentum=momentum)
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2)
        ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_batch_norm_equals_torch_s_in_training_and_evaluation():
    ours, theirs = batch_norms()
    for step in range(3):
        x = torch.randn(4 + step, 5) * 3 + 2
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        a, b = ours(mine), theirs(other)
        torch.testing.assert_close(a, b)
        (a**3).sum().backward()
        (b**3).sum().backward()
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-5)
    for (name, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, msg=name)
    assert ours.num_batches_tracked == 3
    ours.eval(), theirs.eval()
    x = torch.randn(3, 5)
    assert torch.equal(ours(x), theirs(x))


def test_batch_norm_of_a_single_row_uses_what_was_seen():
    ours, _ = batch_norms()
    ours(torch.randn(8, 5) + 2)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    x = torch.randn(1, 5, requires_grad=True)
    out = ours(x)
    out.sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    torch.testing.assert_close(out, ours.eval()(x))
    with pytest.raises(ValueError):  # which is what it is there for
        nn.BatchNorm1d(5)(x)


@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_heads_take_part_without_a_single_row(kind):
    """A rank that has no image left in an uneven last step still runs its share of the graph."""
    given = features(2, 32, (5, 5))
    none = Features(given.before[:0], given.after[:0].requires_grad_(), given.grid)
    head = ScoreHead(kind, 32)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    score = head(none)
    assert score.shape == (0,)
    score.sum().backward()
    assert all((p.grad is None or not p.grad.any()) for p in head.parameters())
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_mask_head_takes_part_without_a_single_row(kind):
    given = features(2, 32, (3, 3))
    head = MaskHead(kind, 32, 16, 8)
    heatmap = head(Features(given.before[:0], given.after[:0], given.grid), (48, 48))
    assert heatmap.shape == (0, 48, 48)
    heatmap.sum().backward()
    assert all((p.grad is None or not p.grad.any()) for p in head.parameters())


def test_batch_norm_without_momentum_leaves_its_statistics():
    ours, theirs = batch_norms()
    ours.momentum = 0.0
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    x = torch.randn(4, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
