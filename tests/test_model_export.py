"""The detector as a reward, with gradients to the pixels, and as an exported graph."""

import numpy as np
import pytest
import torch

from lib.errors import InputError
from lib.model.export import detect, export_graph, export_onnx


@pytest.fixture
def detector(make):
    return make().requires_grad_(False)


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_it_says_what_predict_says_and_refuses_other_input(detector):
    image = (255 * noise(32, 32, 3)).byte()
    heatmap, score = detect(detector, image.permute(2, 0, 1)[None] / 255, ["two cats"])
    one = detector.predict(image.numpy(), "two cats")
    np.testing.assert_allclose(heatmap[0].numpy(), one.heatmap, atol=1e-6)
    assert float(score[0]) == pytest.approx(one.score, abs=1e-6)
    for images, prompts, told in [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a"], "uint8"),
        (torch.zeros(3, 8, 8), ["a"], r"\[B, 3, H, W\]"),
        (torch.zeros(2, 3, 8, 8), ["a"], "2 images"),
        (torch.zeros(1, 3, 8, 8), "a", "1 images"),
    ]:
        with pytest.raises(InputError, match=told):
            detect(detector, images, prompts)


def test_steps_along_the_gradient_lower_the_heatmap_and_raise_the_score(detector):
    """The example of data_cards/reward_and_export.md, on images that are not of the detector's size."""
    for objective in (lambda heatmap, score: heatmap.mean(), lambda heatmap, score: -score.mean()):
        images = noise(2, 3, 48, 40).requires_grad_()
        optimizer, values = torch.optim.Adam([images], lr=0.01), []
        for _ in range(8):
            loss = objective(*detect(detector, images, ["a cat", ""]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                images.clamp_(0, 1)
            values.append(loss.item())
        assert images.grad.isfinite().all() and (images.grad.abs().sum(dim=(1, 2, 3)) > 0).all()
        assert values[-1] < values[0]


def test_images_and_detector_come_in_any_precision(detector):
    for dtype in (torch.float64, torch.float16):
        images = noise(1, 3, 32, 32).to(dtype).requires_grad_()
        heatmap, _ = detect(detector, images, ["a cat"])
        heatmap.sum().backward()
        assert images.grad.dtype == dtype and images.grad.abs().sum() > 0
        expected, _ = detect(detector, images.detach().float(), ["a cat"])
        torch.testing.assert_close(heatmap.detach(), expected)
    half, _ = detect(detector.bfloat16(), images, ["a cat"])
    half.sum().backward()
    torch.testing.assert_close(half.float(), expected, atol=0.02, rtol=0)


@pytest.mark.slow
def test_exported_graphs_give_the_same_heatmaps_for_any_batch(make, tmp_path):
    detector = make(lora_rank=2)
    pixels, text = noise(3, 3, 32, 32), detector.text(["a cat", "", "two dogs on a red chair"])
    with torch.no_grad():
        expected = detector(pixels, **text)
        graph = export_graph(detector).module()
        for rows in (1, 3):
            found = graph(pixels[:rows], *(tokens[:rows] for tokens in text.values()))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other[:rows], atol=1e-5, rtol=0)
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(export_onnx(detector, tmp_path / "new" / "detector.onnx"))
    for rows in (1, 3):
        given = {"pixel_values": pixels} | text
        found = session.run(["heatmap", "score"], {name: value[:rows].numpy() for name, value in given.items()})
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other[:rows], atol=1e-5)
