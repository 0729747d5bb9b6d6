"""What a user gets who points the real commands at the wrong thing: one sentence and a non-zero exit, no traceback."""

import io
import shutil
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from lib.data.prepare import prepare
from lib.errors import InputError
from lib.model import DistortionDetector
from lib.model.weights import read_safetensors
from lib.pickles import load_pickle
from lib.pipeline import __main__ as pipeline
from lib.stores import LabelStore, as_rgb, read_heatmap, read_image
from lib.train import __main__ as training

ROOT = Path(__file__).parent.parent


def test_data_that_cannot_be_used_end_the_pipeline_with_a_sentence(tmp_path, capfd, monkeypatch):
    (tmp_path / "raw/train/images").mkdir(parents=True)
    (tmp_path / "raw/train/train_info.json").write_text('{"a": [1,}')
    monkeypatch.chdir(ROOT)
    given = [f"data_root={tmp_path / 'raw'}", f"data_path={tmp_path / 'prepared'}"]
    sets = [word for one in given for word in ("--set", one)]
    assert pipeline.main(["notebooks/params/full.yaml", "--runs", str(tmp_path / "runs"), *sets]) == 1
    told = "".join(capfd.readouterr())
    assert "Traceback" not in told
    assert f"InputError: {tmp_path / 'raw'}" in told and "is not valid JSON" in told and "line 1 column 10" in told


def test_an_image_that_a_data_worker_cannot_read_ends_the_training(experiment, prepared, tmp_path, capsys):
    shutil.copytree(prepared, tmp_path / "data")
    store, torn = LabelStore(prepared / "train"), tmp_path / "torn.jpg"
    torn.write_bytes(store.image_path(store.ids[5]).read_bytes()[:50])
    images = [str(store.image_path(id)) for id in store.ids]
    images[5] = str(torn)
    store.table.assign(image=images).reset_index().to_parquet(tmp_path / "data/train/manifest.parquet")
    experiment(num_workers=1, data_path=str(tmp_path / "data")).save(tmp_path / "config.yaml")
    assert training.main([str(tmp_path / "config.yaml")]) == 2
    told = f"error: {torn} is not an image that OpenCV or Pillow can read. Replace it or remove its entry."
    assert capsys.readouterr().err.splitlines()[-1] == told


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
        with pytest.raises(InputError, match=what):
            read(path)


@pytest.fixture(scope="module")
def detector(micro_experiment, tmp_path_factory):
    return DistortionDetector.from_checkpoint(micro_experiment(tmp_path_factory.mktemp("runs"))).eval()


PHOTO = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)


def cut_short() -> Image.Image:
    """A JPEG that Pillow has opened and not read, and whose second half is missing."""
    file = io.BytesIO()
    Image.fromarray(np.kron(PHOTO, np.ones((30, 30, 1), np.uint8))).save(file, "jpeg")
    return Image.open(io.BytesIO(file.getvalue()[: file.tell() // 2]))


NO_IMAGE = {
    "nothing": (None, "not NoneType of object"),
    "bytes": (io.BytesIO(b"x"), "not BytesIO of object"),
    "no file name": ("\ud800.png", "cannot be read"),
    "address": ("https://example.org/a.png", "is an address; download the image"),
    "ragged": ([[[1, 2, 3]], [[1]]], "not list"),
    "bfloat16": (torch.zeros(4, 4, 3, dtype=torch.bfloat16), "not Tensor .*BFloat16"),
    "sparse": (torch.zeros(4, 4, 3).to_sparse(), "not Tensor"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), r"not ndarray of uint8 \[3, 8, 8\]; convert it"),
    "float": (np.zeros((8, 8, 3)), r"not ndarray of float64 \[8, 8, 3\]"),
    "empty": (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\]"),
    "cut short": (cut_short(), "not an image of mode RGB .*truncated"),
    "32 bits": (Image.fromarray(np.zeros((4, 4), np.float32)), "mode F .*more than 16 bits a channel"),
}


@pytest.mark.parametrize(("image", "told"), NO_IMAGE.values(), ids=NO_IMAGE)
def test_what_is_no_image_is_one_sentence(detector, image, told):
    with pytest.raises(InputError, match=told):
        detector.predict(image)


@pytest.mark.parametrize("mode", ["HSV", "LAB", "YCbCr", "CMYK", "RGBA", "L", "1", "P"])
def test_an_image_of_any_mode_is_seen_in_its_colours(mode):
    image = Image.new("RGB", (8, 8), (200, 40, 60))
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    else:
        image = image.convert(mode)
    expected = {"L": [90] * 3, "1": [90] * 3}.get(mode, [200, 40, 60])
    assert np.abs(as_rgb(image).reshape(-1, 3).mean(0) - expected).max() <= (20 if mode == "1" else 3)


def test_grey_of_16_bits_is_read_from_memory_and_any_file(tmp_path):
    image = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.tif")
    expected = np.stack([np.arange(64).reshape(8, 8) * 1000 >> 8] * 3, axis=2)
    for given in (image, tmp_path / "a.png", tmp_path / "a.tif"):
        np.testing.assert_allclose(as_rgb(given).astype(int), expected, atol=1)


def test_an_image_in_memory_is_the_file_that_it_was_opened_from(detector, tmp_path):
    """With a quarter turn in its EXIF; and several images at once are each of them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PHOTO).save(tmp_path / "turned.png", exif=exif)
    paths = [tmp_path / "turned.png", Image.open(tmp_path / "turned.png"), np.rot90(PHOTO, -1)]
    found = [detector.predict(image, "a hand") for image in paths]
    many = list(detector.predict_many(iter(paths), iter(["a hand"] * 3), batch_size=2))
    for one in found + many:
        assert one.heatmap.shape == (4, 6)
        np.testing.assert_allclose(one.heatmap, found[0].heatmap, atol=1e-6)
        assert one.score == pytest.approx(found[0].score, abs=1e-6)
    assert len(list(detector.predict_many(paths, batch_size=5))) == 3
    for wrong in ((paths, "a hand"), (paths, 5), (str(paths[0]), None), (paths[0], None), (None, None), (paths[1], [])):
        with pytest.raises(InputError, match=r"needs a list of (images|prompts), one an image, not \w+$"):
            list(detector.predict_many(*wrong))
    with pytest.raises(ValueError, match="shorter"):
        list(detector.predict_many(paths, ["a hand"]))


def test_predict_takes_what_preparation_takes(detector, tmp_path):
    assert detector.predict(np.zeros((8, 8, 3), np.uint8), "half a \ud83d pair").heatmap.shape == (8, 8)
    huge = cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes()
    size = huge.index(b"IHDR") + 4
    header = b"IHDR" + (2**30).to_bytes(4, "big") * 2 + huge[size + 8 : size + 13]
    claimed = huge[: size - 4] + header + zlib.crc32(header).to_bytes(4, "big") + huge[size + 17 :]
    (tmp_path / "huge.png").write_bytes(claimed)
    with pytest.raises(InputError, match="huge.png is not an image that OpenCV or Pillow can read"):
        detector.predict(tmp_path / "huge.png")
