"""What a user gets who points the real commands at the wrong thing: one sentence and a non-zero exit, no traceback."""

import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from lib.challenge.pickles import load_pickle
from lib.data.prepare import prepare
from lib.errors import InputError
from lib.model import DistortionDetector
from lib.model.weights import read_safetensors
from lib.stores import LabelStore, read_heatmap, read_image
from lib.train import launch

ROOT = Path(__file__).parent.parent


def start(tmp_path: Path, data_root: Path, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lib.pipeline", "notebooks/params/full.yaml", "--runs", str(tmp_path / "runs")]
    settings = [f"data_root={data_root}", f"data_path={tmp_path / 'prepared'}", *more]
    command += [word for setting in settings for word in ("--set", setting)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def no_data(root: Path) -> str:
    return f"{root / 'train'} does not exist or is no folder"


def empty_folder(root: Path) -> str:
    (root / "train").mkdir(parents=True)
    return "train_info.json does not exist; DATA_ROOT must hold"


def malformed_json(root: Path) -> str:
    (root / "train" / "images").mkdir(parents=True)
    (root / "train" / "train_info.json").write_text('{"a": [1,}')
    return "train_info.json is not valid JSON at line 1, column 10"


@pytest.mark.parametrize("broken", [no_data, empty_folder, malformed_json])
def test_data_that_cannot_be_used_end_the_pipeline_with_a_sentence(tmp_path, broken):
    sentence = broken(tmp_path / "raw")
    done = start(tmp_path, tmp_path / "raw")
    told = done.stdout + done.stderr
    assert done.returncode == 1
    assert f"InputError: {tmp_path / 'raw'}" in told and sentence in told
    assert "Traceback" not in told


def test_a_typo_in_a_parameter_ends_before_anything_starts(tmp_path):
    done = start(tmp_path, tmp_path / "raw", "bach_size=4")
    assert done.returncode == 2
    assert "did you mean batch_size?" in done.stderr
    assert not (tmp_path / "runs").exists()


UNREADABLE = " is not an image that OpenCV can read. Replace it or remove its entry."


@pytest.fixture
def torn_image(raw, tmp_path) -> Path:
    """An image of train, cut off after 50 bytes, of the prepared data in tmp_path / data."""
    shutil.copytree(raw, tmp_path / "raw")
    prepare(tmp_path / "raw", tmp_path / "data", workers=1)
    store = LabelStore(tmp_path / "data" / "train")
    image = store.image_path(store.ids[5])
    image.write_bytes(image.read_bytes()[:50])
    return image


def test_an_image_that_a_data_worker_cannot_read_ends_the_training(experiment, torn_image, tmp_path):
    experiment(num_workers=1, data_path=str(tmp_path / "data")).save(tmp_path / "config.yaml")
    command = [sys.executable, "-m", "lib.train", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    [told] = done.stderr.splitlines()
    assert told.startswith("error: ") and told.endswith(f"/{torn_image.name}{UNREADABLE}")


@pytest.mark.slow
def test_an_image_that_a_data_worker_cannot_read_ends_several_processes(experiment, torn_image, tmp_path):
    config = experiment(num_workers=1, num_processes=2, data_path=str(tmp_path / "data"))
    with pytest.raises(InputError, match=f"^[^ ]*/{torn_image.name}{UNREADABLE}$"):
        launch(config)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
OTHERS = {"Git LFS pointer": POINTER, "empty": b"", "gzip": b"\x1f\x8b\x08", "web page": b"<!DOCTYPE html><html>"}


@pytest.mark.parametrize(("what", "content"), OTHERS.items(), ids=OTHERS)
def test_a_file_that_is_something_else_is_called_that(tmp_path, what, content):
    for name, read in (
        ("a.jpg", read_image),
        ("a.png", read_heatmap),
        ("heads.safetensors", read_safetensors),
        ("output.pkl", load_pickle),
        ("train_info.json", lambda path: prepare(path.parents[1], tmp_path / "out", ["train"])),
    ):
        path = tmp_path / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        if what == "gzip" and name.endswith("json"):
            continue  # no text at all: its own sentence
        with pytest.raises(InputError, match=what):
            read(path)


def test_predict_takes_what_preparation_takes(experiment, tmp_path):
    detector = DistortionDetector.from_checkpoint(experiment())
    assert detector.predict(np.zeros((8, 8, 3), np.uint8), "half a \ud83d pair").heatmap.shape == (8, 8)
    huge = cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes()
    size = huge.index(b"IHDR") + 4
    header = b"IHDR" + (2**30).to_bytes(4, "big") * 2 + huge[size + 8 : size + 13]
    claimed = huge[: size - 4] + header + zlib.crc32(header).to_bytes(4, "big") + huge[size + 17 :]
    (tmp_path / "huge.png").write_bytes(claimed)
    with pytest.raises(InputError, match="huge.png is not an image that OpenCV can read"):
        detector.predict(tmp_path / "huge.png")
