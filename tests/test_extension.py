"""What somebody adds from outside: a loss is one entry, a head one, an encoder one, a parameter one field."""

import dataclasses

import pytest
import torch
from torch import nn

from lib import config as config_module
from lib.config import Experiment
from lib.errors import InputError
from lib.model import DistortionDetector
from lib.model.encoders import backbone
from lib.model.encoders.florence2 import Florence2Encoder
from lib.model.heads import MASK_HEADS, SCORE_HEADS
from lib.model.losses import MASK_LOSSES, SCORE_LOSSES, mask_loss, score_loss
from lib.train.loop import train


def test_a_loss_is_one_entry(experiment, monkeypatch):
    monkeypatch.setitem(MASK_LOSSES, "l1", lambda heatmap, target: (heatmap - target).abs().flatten(1).mean(1))
    monkeypatch.setitem(SCORE_LOSSES, "l1", (lambda score, target: (score - target).abs().mean(), 2.0))
    heatmap, score = torch.full((1, 2, 2), 0.5), torch.tensor([0.25])
    assert mask_loss("l1-mse")(heatmap, torch.zeros(1, 2, 2)).tolist() == [0.75]
    assert score_loss("l1")(score, torch.zeros(1)).item() == 0.5
    run = train(experiment(mask_loss="l1-mse", score_loss="l1", warmup_epoch=0, epoch=1).resolved())
    assert (run / "finished.json").is_file()


def test_a_head_is_one_entry(experiment, monkeypatch):
    class Flat(nn.Module):
        """A heatmap that is the same everywhere."""

        def __init__(self, config, encoder):
            super().__init__()
            self.out = nn.Linear(encoder.width, 1)

        def forward(self, features, size):
            return self.out(features.after[:, 0]).sigmoid()[:, :, None].expand(-1, *size)

    class Rated(nn.Linear):
        """The same score for every image."""

        def __init__(self, width):
            super().__init__(width, 1)

        def forward(self, features):
            return super().forward(0 * features.after[:, 0]).sigmoid().squeeze(1)

    monkeypatch.setitem(MASK_HEADS, "flat", Flat)
    monkeypatch.setitem(SCORE_HEADS, "mine", lambda config, encoder: Rated(encoder.width))
    detector = DistortionDetector.from_checkpoint(experiment(mask_head="flat", score_head="mine"))
    heatmap = detector.predict(torch.zeros(8, 8, 3, dtype=torch.uint8).numpy(), "a thing").heatmap
    assert heatmap.min() == heatmap.max() > 0


def test_an_encoder_is_one_entry(experiment, monkeypatch):
    class Other(Florence2Encoder):
        model = "florence2"  # of the checkpoint's config.json
        mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    monkeypatch.setitem(backbone.ENCODERS, "other", Other)
    detector = DistortionDetector.from_checkpoint(experiment(model="other"))
    assert isinstance(detector.encoder, Other)
    assert detector.normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).eq(2).all()


def test_a_parameter_is_one_field():
    @dataclasses.dataclass
    class Wider(Experiment):
        focus: float = config_module._field(0.5, low=0.0, high=1.0)

    assert Wider.from_dict({"focus": 0.25}).to_dict()["focus"] == 0.25
    with pytest.raises(InputError, match="focus: 2.0"):
        Wider.from_dict({"focus": 2.0})
