"""Fixtures shared by the tests: a prepared procedural data set and a Florence-2 of a few thousand weights."""

import json
import multiprocessing
import os
import shutil
import signal
from functools import partial
from pathlib import Path

# Before torch starts: the tests run beside other work on few cores, and one thread gives the same sums everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import altclip_sizes
import cv2
import hypothesis
import pytest
import torch
from fork_server import ForkServer

from lib import tiny
from lib.config import Experiment
from lib.data.prepare import prepare
from lib.model import DistortionDetector
from lib.synthetic import write_dataset

# A shell's background job ignores Ctrl-C, and so would every process that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples on every machine, however slow it is.
SLOW = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
hypothesis.settings.register_profile("kit", derandomize=True, deadline=None, suppress_health_check=SLOW)
hypothesis.settings.load_profile("kit")
pytest.register_assert_rewrite("lab")  # a module of fixtures, which test modules import from as well

COUNTS = {"train": 24, "val": 8, "test": 8}
SIDE = 64  # pixels of the images on disk
# 32 px give a grid of 2x2 tokens (stride 16) of width 16.
GEOMETRY = {
    "vision_config": {
        "depths": (1, 1, 1, 1), "embed_dim": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "num_groups": (1, 1, 2, 2),
        "patch_stride": (4, 2, 2, 1), "window_size": 4, "projection_dim": 16, "drop_path_rate": 0.1,
    },
    "text_config": {
        "model_type": "bart", "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
        "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "max_position_embeddings": 256,
        "dropout": 0.1, "attention_dropout": 0.0, "activation_dropout": 0.0,
    },
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> Path:
    """24 train, 8 val and 8 test images of 64 px in the challenge's format."""
    folder = tmp_path_factory.mktemp("raw")
    write_dataset(folder, COUNTS, size=SIDE, seed=3, shifted=0.25, workers=1)
    return folder


@pytest.fixture(scope="session")
def prepared(raw, tmp_path_factory) -> Path:
    """The same, prepared by notebook 1's function."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(raw, folder, workers=1)
    return folder


@pytest.fixture
def own(raw, tmp_path) -> Path:
    """The same in a folder of the test's own, to be changed; the images stay where they are."""
    prepare(raw, tmp_path / "own", workers=1)
    return tmp_path / "own"


@pytest.fixture(scope="session")
def micro_checkpoint(raw, tmp_path_factory) -> Path:
    """A randomly initialised Florence-2 of about 20,000 encoder weights, dropout and stochastic depth included."""
    info = json.loads((raw / "train" / "train_info.json").read_text())
    prompts = [record["prompt_en"] for record in info.values()]
    return tiny.build(tmp_path_factory.mktemp("checkpoint"), prompts, geometry=GEOMETRY)


@pytest.fixture(scope="session")
def still_checkpoint(micro_checkpoint, tmp_path_factory) -> Path:
    """The same weights without dropout and stochastic depth, which are other ones on every rank."""
    folder = tmp_path_factory.mktemp("still") / "checkpoint"
    shutil.copytree(micro_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["drop_path_rate"] = config["text_config"]["dropout"] = 0.0
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def micro_experiment(micro_checkpoint, prepared):
    """micro_experiment(runs folder, **changes) -> a small two-stage run."""

    def make(runs, **changes) -> Experiment:
        values = {
            "experiment_name": "run", "runs": str(runs), "data_path": str(prepared),
            "checkpoint": str(micro_checkpoint), "input_size": 32, "mask_size": 32, "mask_stride": 8,
            "warmup_epoch": 1, "epoch": 2, "batch_size": 4, "batch_size_warmup": 8, "accumulate_step": 1,
            "lr": 1e-3, "num_workers": 0, "log_iter": 1,
        }  # fmt: skip
        return Experiment.from_dict(values | changes)

    return make


@pytest.fixture
def experiment(micro_experiment, tmp_path):
    """experiment(**changes) -> the same below tmp_path."""
    return partial(micro_experiment, tmp_path / "runs")


@pytest.fixture(scope="session")
def altclip_checkpoint(raw, tmp_path_factory) -> Path:
    """A randomly initialised AltCLIP of a few thousand weights."""
    info = json.loads((raw / "train" / "train_info.json").read_text())
    return altclip_sizes.build(tmp_path_factory.mktemp("altclip"), [row["prompt_en"] for row in info.values()])


@pytest.fixture
def model_settings(experiment, altclip_checkpoint):
    """model_settings(model, **changes) -> a small run of florence2 or altclip."""
    altclip = {"checkpoint": str(altclip_checkpoint), "input_size": 28, "mask_stride": 7}
    return lambda model="florence2", **changes: experiment(
        model=model, **({} if model == "florence2" else altclip) | changes
    )


@pytest.fixture
def make(model_settings):
    """make(model, **changes) -> an untrained detector in evaluation mode."""
    return lambda *model, **changes: DistortionDetector.from_checkpoint(model_settings(*model, **changes)).eval()


@pytest.fixture(scope="session")
def fork_server():
    yield ForkServer()
    for process in multiprocessing.active_children():
        if isinstance(process, multiprocessing.context.ForkServerProcess):  # joblib's workers end by themselves
            process.kill()
