"""What a training does at every step, recorded while it runs; and its weights, read back for comparison."""

import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lib.model.weights import read_safetensors
from lib.train import loop
from lib.train.loop import Run


def model_weights(run: Path, name: str = "model") -> dict[str, torch.Tensor]:
    """All weights and buffers of `runs/<experiment>/model`, named as in the detector."""
    folder = Path(run) / name
    weights = dict(read_safetensors(folder / "heads.safetensors"))
    for part in ("encoder", "adapter"):
        if (folder / f"{part}.safetensors").is_file():
            own = read_safetensors(folder / f"{part}.safetensors")
            weights |= {f"encoder.{key}": value for key, value in own.items()}
    return weights


def assert_identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Equal to the last bit."""
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def snapshot(detector) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in detector.state_dict().items()}


@contextmanager
def watched():
    """Yields {"steps": [one dict a step], "evaluated": [(step, weights as evaluated)], "initial": weights}."""
    seen = {"steps": [], "evaluated": [], "initial": None}
    update, adam, evaluate = Run._update, torch.optim.AdamW.step, loop.validation_figures

    def watched_update(run, stage, batches):
        detector = run.detector
        seen["initial"] = seen["initial"] or snapshot(detector)
        row = {"stage": stage.name, "ids": [batch["id"] for batch in batches], "updated": False}
        row["before"] = snapshot(detector)
        seen["steps"].append(row)
        row["losses"] = update(run, stage, batches)
        row["after"] = snapshot(detector)
        row["modes"] = {"encoder": detector.encoder.training, "heads": detector.mask_head.training}
        return row["losses"]

    def watched_adam(optimizer, closure=None):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        seen["steps"][-1] |= {
            "updated": True,
            "groups": [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups],
            "norm": float(torch.nn.utils.get_total_norm(gradients)),
        }
        return adam(optimizer, closure)

    def watched_evaluation(detector, *source):
        seen["evaluated"].append((len(seen["steps"]), snapshot(detector)))
        return evaluate(detector, *source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_update", watched_update)
        patch.setattr(torch.optim.AdamW, "step", watched_adam)
        patch.setattr(loop, "validation_figures", watched_evaluation)
        yield seen


@contextmanager
def signal_in_step(step: int, number: int = signal.SIGTERM):
    """Within the block a training sends itself the signal in the middle of this step."""
    update = Run._update

    def update_and_signal(run, *arguments):
        if run.step + 1 == step:
            os.kill(os.getpid(), number)
        return update(run, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_update", update_and_signal)
        yield
