"""Predictions of a split: what is stored, going on after an interruption, views, ensembles."""

import errno
import shutil
from unittest.mock import Mock

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from lib.data.pixels import to_pixels
from lib.data.prepare import prepare
from lib.errors import InputError
from lib.files import replacing
from lib.predict import growing
from lib.predict.prediction import augmented, ensemble, fingerprint, predict
from lib.stores import LabelStore, PredictionStore, write_heatmap


@pytest.fixture
def detector(make):
    return make()


@pytest.fixture
def store(prepared) -> LabelStore:
    return LabelStore(prepared / "val")


@pytest.fixture
def own(raw, tmp_path) -> LabelStore:
    """The split with images of its own, to be replaced."""
    shutil.copytree(raw / "val", tmp_path / "raw" / "val")
    prepare(tmp_path / "raw", tmp_path / "data", ["val"], workers=1)
    return LabelStore(tmp_path / "data" / "val")


@pytest.fixture
def counted(detector):
    """The ids that passed through the network, by patching its text encoder's input."""
    calls = []
    detector.register_forward_hook(lambda module, args, out: calls.append(len(out[1])))
    return calls


def contents(predictions: PredictionStore) -> dict:
    return {id: (predictions.table.at[id, "score"], predictions.heatmap(id).tobytes()) for id in predictions.ids}


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"batch_size": 100, "num_workers": 2}], ids=["3", "workers"])
def test_the_store_holds_the_forward_pass(detector, store, tmp_path, options):
    predictions = predict(detector, store, tmp_path / "out", **options)
    assert predictions.ids == store.ids
    for id in store.ids:
        pixels, text = to_pixels(store.image(id), (32, 32))[None], detector.text([store.table.at[id, "prompt"]])
        with torch.inference_mode():
            heatmap, score = detector(pixels, **text)
        stored = predictions.heatmap(id)
        assert stored.shape == (32, 32) and stored.dtype == np.uint8
        assert np.abs(stored - heatmap[0].numpy() * 255).max() <= 0.51
        assert predictions.table.at[id, "score"] == pytest.approx(score.item(), abs=1e-5)


# Going on


def stopped_at(number: int, monkeypatch, work) -> None:
    """Do `work`, interrupted in place of the heatmap of this number and those after it."""
    write, count = growing.write_heatmap, []

    def stop(path, heatmap):
        count.append(path)
        if len(count) >= number:
            raise KeyboardInterrupt
        write(path, heatmap)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(growing, "write_heatmap", stop)
        work()


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_an_interrupted_prediction_goes_on(detector, store, tmp_path, monkeypatch, counted, cut):
    """Also after a line of its log that was written by half; one that only lacks its end is whole."""
    stopped_at(6, monkeypatch, lambda: predict(detector, store, tmp_path / "out", batch_size=1))
    with pytest.raises(InputError, match="holds no scores.parquet"):
        PredictionStore(tmp_path / "out")
    log = next((tmp_path / "out").glob("scores_*.part.jsonl"))
    log.write_bytes(log.read_bytes()[: -cut or None])
    counted.clear()
    found = predict(detector, store, tmp_path / "out", batch_size=1)
    assert sum(counted) == (4 if cut == 30 else 3)
    assert contents(found) == contents(predict(detector, store, tmp_path / "whole", batch_size=1))
    counted.clear()
    predict(detector, store, tmp_path / "out", batch_size=1)
    assert sum(counted) == 0  # nothing is left to do


def test_a_finished_prediction_is_repeated_with_other_settings_only(detector, store, tmp_path, counted):
    plain = contents(predict(detector, store, tmp_path))
    assert contents(predict(detector, store, tmp_path, store.ids[:3])).keys() == set(store.ids[:3])
    assert sum(counted) == 8
    assert contents(predict(detector, store, tmp_path, flip=True, scales=(0.5, 1.0))) != plain
    assert sum(counted) == 8 + 4 * 8
    assert contents(predict(detector, store, tmp_path)) == plain
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a validation predicts in the precision around it
        around = contents(predict(detector, store, tmp_path / "around"))
    assert around != plain and all(around[id][0] == pytest.approx(plain[id][0], abs=0.02) for id in store.ids)


def test_labels_and_other_rows_do_not_matter_to_what_is_predicted(detector, own, tmp_path, counted):
    table = pd.read_parquet(own.path / "manifest.parquet")
    ids = list(table["id"])
    table.iloc[:6].to_parquet(own.path / "manifest.parquet", index=False)
    first = contents(predict(detector, LabelStore(own.path), tmp_path / "out", batch_size=1))
    bare = table.iloc[2:].assign(mos=np.nan, score=np.nan, labelled=False)
    bare.to_parquet(own.path / "manifest.parquet", index=False)
    shutil.rmtree(own.path / "heatmaps")
    asked = ids[:1:-1]  # in the order asked for
    found = predict(detector, LabelStore(own.path), tmp_path / "out", asked, batch_size=1)
    assert sum(counted) == 8 and found.ids == asked
    assert all(contents(found)[id] == first[id] for id in ids[2:6])
    bare.assign(prompt="something else").to_parquet(own.path / "manifest.parquet", index=False)
    predict(detector, LabelStore(own.path), tmp_path / "out")
    assert sum(counted) == 8 + 6


def test_an_interrupted_prediction_does_not_mix_images(detector, own, tmp_path, counted, monkeypatch):
    original = own.image_path(own.ids[0])
    shutil.copy2(original, tmp_path / "copy")
    predict(detector, own, tmp_path / "out", batch_size=1)
    for id in own.ids[:3]:
        path = own.image_path(id)
        cv2.imwrite(str(path), 255 - cv2.imread(str(path)))  # of the same size; the tables stay
    stopped_at(3, monkeypatch, lambda: predict(detector, own, tmp_path / "out", batch_size=1))
    with pytest.raises(InputError, match="holds no scores.parquet"):  # two are of the new images, one of an old one
        PredictionStore(tmp_path / "out")
    shutil.copy2(tmp_path / "copy", original)  # with the time it had at first
    counted.clear()
    found = predict(detector, own, tmp_path / "out", batch_size=1)
    assert sum(counted) == 2
    assert contents(found) == contents(predict(detector, own, tmp_path / "whole", batch_size=1))


def test_a_folder_of_something_else_is_left_alone(detector, prepared, tmp_path):
    labels = shutil.copytree(prepared / "train", tmp_path / "train")
    before = sorted(path.name for path in (labels / "heatmaps").iterdir())
    with pytest.raises(InputError, match="train holds heatmaps that are no predictions of this kit; give another f"):
        predict(detector, LabelStore(prepared / "train"), labels)
    assert sorted(path.name for path in (labels / "heatmaps").iterdir()) == before
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("mine")
    predict(detector, LabelStore(prepared / "val"), tmp_path / "work")
    assert (tmp_path / "work" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"ids": []}, "val holds no image to predict"),
        ({"folder": "file/out"}, "file/out cannot be written .*; give a folder with write access"),
        ({"lost": 3}, " does not exist; restore it"),
        ({"score_head": "conv", "scales": (0.5,)}, "was made for a grid of .* predict at the training's size"),
        ({"scales": (1.0, 60.0)}, "50 positions a side"),
    ],
)
def test_what_cannot_be_predicted_is_told_before_anything_is_written(make, own, tmp_path, asked, told):
    (tmp_path / "file").touch()
    if "lost" in asked:
        own.image_path(own.ids[asked["lost"]]).unlink()
    detector = make(input_size=80, score_head=asked["score_head"]) if "score_head" in asked else make()
    options = {name: value for name, value in asked.items() if name in ("ids", "scales")}
    with pytest.raises(InputError, match=told):
        predict(detector, own, tmp_path / asked.get("folder", "out"), **options)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_and_the_prediction_goes_on(detector, store, tmp_path, monkeypatch):
    whole = contents(predict(detector, store, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(growing, "write_heatmap", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(InputError, match="out cannot be written: the disk is full; free space and run the same"):
            predict(detector, store, tmp_path / "out")
    assert contents(predict(detector, store, tmp_path / "out")) == whole


@pytest.mark.parametrize(("output", "value"), [(0, np.inf), (1, np.nan)], ids=["heatmap", "score"])
def test_an_output_that_is_no_number_is_told_and_not_stored(detector, store, tmp_path, output, value):
    """Of the second of three batches, two images."""
    batches = []

    def break_two(module, args, outputs):
        batches.append(len(outputs[1]))
        if len(batches) == 2:
            outputs[output][0].fill_(value)
            outputs[output][2].reshape(-1)[:1].fill_(value)  # one pixel is enough

    hook = detector.register_forward_hook(break_two)
    told = f"{store.ids[3]}, {store.ids[5]}: .* is not finite; .* mixed_precision"
    with pytest.raises(InputError, match=told):
        predict(detector, store, tmp_path / "out", batch_size=3)
    hook.remove()
    assert sorted(path.stem for path in (tmp_path / "out" / "heatmaps").iterdir()) == store.ids[:3]
    found = predict(detector, store, tmp_path / "out", batch_size=3)
    assert contents(found) == contents(predict(detector, store, tmp_path / "whole", batch_size=3))


# What makes two predictions the same


def test_fingerprints_tell_weights_and_settings_apart(make):
    detector = make()
    base = fingerprint(detector)
    assert base == fingerprint(make()) == fingerprint(detector.train())
    assert len({base, fingerprint(make(mask_size=16)), fingerprint(make(text_padding="max_length"))}) == 3
    with torch.no_grad():
        detector.score_head.mlp[1].running_var[0] += 1e-6
    assert fingerprint(detector) != base


# Views


def test_flip_and_scales_average_with_the_other_views(make, store):
    detector = make(input_size=64)
    pixels = torch.stack([to_pixels(store.image(id), detector.config.input_shape) for id in store.ids[:2]])
    batch = {"pixel_values": pixels, **detector.text(["a man"] * 2)}
    mirrored = {**batch, "pixel_values": pixels.flip(-1)}
    sides, scales = [], (1.0, 0.7, 1.3)
    with torch.inference_mode():
        heatmap, score = augmented(detector, batch, True, (1.0,))
        other = augmented(detector, mirrored, True, (1.0,))
        plain, turned = detector(**batch), detector(**mirrored)
        parts = [augmented(detector, batch, False, (scale,)) for scale in scales]
        detector.encoder.register_forward_hook(lambda m, a, out: sides.append(out.grid[0] * 16))
        scaled = augmented(detector, batch, False, scales)
    torch.testing.assert_close(heatmap, (plain[0] + turned[0].flip(-1)) / 2)
    torch.testing.assert_close(score, (plain[1] + turned[1]) / 2)
    # Equivariant: the mirrored image has the mirrored heatmap and the same score, which by itself it has not.
    torch.testing.assert_close(other[0], heatmap.flip(-1))
    torch.testing.assert_close(other[1], score)
    assert not torch.allclose(plain[0], turned[0].flip(-1), atol=1e-4)
    assert sides == [64, 48, 80]  # rounded to the stride
    for found, each in zip(scaled, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(each).mean(0))
    assert scaled[0].shape == (2, 32, 32)


# Ensembles


def written(folder, heatmaps: dict, scores: dict) -> PredictionStore:
    for id, heatmap in heatmaps.items():
        write_heatmap(folder / "heatmaps" / f"{id}.png", np.asarray(heatmap, np.uint8))
    with replacing(folder / "scores.parquet") as part:
        pd.DataFrame({"id": list(scores), "score": list(scores.values())}).to_parquet(part, index=False)
    return PredictionStore(folder)


@pytest.fixture
def runs(tmp_path):
    a = written(tmp_path / "a", {"x": [[0, 100], [200, 255]], "y": [[8, 8], [8, 8]]}, {"x": 0.2, "y": 1.0})
    b = written(tmp_path / "b", {"y": [[0, 0], [0, 1]], "x": [[0, 201], [0, 255]]}, {"y": 0.5, "x": 0.6})
    return [a, b]


def test_an_ensemble_is_the_mean(runs, tmp_path):
    mean, weighted = ensemble(runs, tmp_path / "mean"), ensemble(runs, tmp_path / "weighted", [3, 1])
    assert mean.heatmap("x").tolist() == [[0, 150], [100, 255]]  # 150.5 rounds to even
    assert mean.table["score"].to_dict() == pytest.approx({"x": 0.4, "y": 0.75})
    assert weighted.heatmap("x").tolist() == [[0, 125], [150, 255]]
    assert weighted.table["score"].tolist() == pytest.approx([0.3, 0.875])
    small = written(tmp_path / "small", {"x": np.zeros((4, 4))}, {"x": 0.0})
    large = written(tmp_path / "large", {"x": np.kron([[0, 200], [100, 0]], np.ones((4, 4)))}, {"x": 1.0})
    both = ensemble([small, large], tmp_path / "sizes").heatmap("x")  # of the first one's size
    assert both.tolist() == np.kron([[0, 100], [50, 0]], np.ones((2, 2))).tolist()


def test_ensembles_that_cannot_be(runs, tmp_path):
    other = written(tmp_path / "c", {"x": [[0]], "z": [[0]]}, {"x": 0.0, "z": 0.0})
    with pytest.raises(InputError, match=r"c and .*a hold other images \(for example y\); predict both again"):
        ensemble([runs[0], other], tmp_path / "mean")
    for weights in ([1], [0, 0], [1, -1], [1, 2, 3], [float("nan"), 1]):
        with pytest.raises(InputError, match="ensemble: 2 runs need as many weights"):
            ensemble(runs, tmp_path / "mean", weights)
    with pytest.raises(InputError, match="ensemble: 0 runs"):
        ensemble([], tmp_path / "mean")
    with pytest.raises(InputError, match="a is one of the runs to be averaged"):
        ensemble(runs, tmp_path / "a")
    assert not (tmp_path / "mean").exists() and contents(runs[0])["y"][0] == 1.0


def test_what_a_member_predicted_anew_is_averaged_again(runs, tmp_path, monkeypatch):
    ensemble(runs, tmp_path / "mean")
    write, averaged = growing.write_heatmap, []
    monkeypatch.setattr(growing, "write_heatmap", lambda path, map: (averaged.append(path.stem), write(path, map)))
    write_heatmap(tmp_path / "a" / "heatmaps" / "x.png", np.full((2, 2), 10, np.uint8))
    assert ensemble(runs, tmp_path / "mean").heatmap("x").tolist() == [[5, 106], [5, 132]]
    assert averaged == ["x"]
    runs[1].table.assign(score=[0.5, 0.8]).reset_index().to_parquet(tmp_path / "b" / "scores.parquet", index=False)
    changed = [runs[0], PredictionStore(tmp_path / "b")]
    assert ensemble(changed, tmp_path / "mean").table["score"].to_dict() == pytest.approx({"x": 0.5, "y": 0.75})
    assert averaged == ["x", "x"]
