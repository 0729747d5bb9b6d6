"""A run folder written by an earlier version (commit ae368e1) still loads, predicts the same and may be trained on."""

from pathlib import Path

import numpy as np
import pytest

from lib.config import Experiment
from lib.model import DistortionDetector
from lib.train import launch, read_metrics

OLD = Path(__file__).parent / "golden" / "old_run"


def test_an_old_run_predicts_what_it_did():
    expected = np.load(OLD / "prediction.npz")
    image = (np.arange(40 * 48 * 3) % 251).astype(np.uint8).reshape(40, 48, 3)
    found = DistortionDetector.from_pretrained(OLD).predict(image, "a photo of a chair")
    np.testing.assert_allclose(found.heatmap, expected["heatmap"], atol=1e-5)
    assert found.score == pytest.approx(float(expected["score"]), abs=1e-5)


def test_an_old_run_is_read_and_trained_on(experiment):
    config = Experiment.from_yaml(OLD / "config.yaml")  # it still names accelerate_config
    assert (config.name, config.mask_loss) == ("old_run", "binary_dice-mse")  # dice is the reference's loss since
    assert [row["step"] for row in read_metrics(OLD)] == [1, 2, 3, 4]
    assert (launch(experiment(checkpoint=str(OLD), warmup_epoch=0, epoch=1)) / "model" / "detector.json").is_file()
