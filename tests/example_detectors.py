"""What the tests of models share: a batch, outputs as arrays, a few steps of training."""

import numpy as np
import torch

from lib.model.detector import DistortionDetector
from lib.model.lora import set_trainable

PROMPTS = ["a man in a red shirt", "two women"]


def batch_for(detector, images=2, seed=0) -> dict:
    """Random pixels in 0..1 and tokens for so many images (an even number)."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(images, 3, *detector.config.input_shape, generator=generator)
    return {"pixel_values": pixels, **detector.text(PROMPTS * (images // 2))}


def outputs(detector, seed=0) -> list[np.ndarray]:
    """[heatmap, score] of a batch in evaluation mode."""
    # Even without gradients torch multiplies in another order for weights that require them: other last digits.
    detector.requires_grad_(False)
    with torch.inference_mode():
        return [out.numpy() for out in detector.eval()(**batch_for(detector, seed=seed))]


def train_a_little(detector, steps=2) -> DistortionDetector:
    """Change everything a training changes: weights that train, running statistics."""
    set_trainable(detector, "main")
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(0)
    for step in range(steps):
        heatmap, score = detector.train()(**batch_for(detector, images=4, seed=step))
        (heatmap.mean() + score.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return detector.eval()


def assert_equal_outputs(a, b, **tolerance) -> None:
    """To the bit, or within the tolerance of numpy's `assert_allclose`."""
    for one, other in zip(outputs(a), outputs(b), strict=True):
        np.testing.assert_allclose(one, other, **({"rtol": 0} | tolerance))


def gradients(detector) -> dict[str, torch.Tensor]:
    """Of one step under a fixed seed (dropout, stochastic depth), by name."""
    torch.manual_seed(0)
    heatmap, score = detector.train()(**batch_for(detector, images=4))
    (heatmap.mean() + score.mean()).backward()
    return {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}


def assert_equal_gradients(a, b) -> None:
    found, expected = gradients(a), gradients(b)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], msg=name)
