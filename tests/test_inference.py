"""Predictions of a split: what is stored, going on after an interruption, views, ensembles."""

import errno
import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from lib.data.prepare import prepare
from lib.errors import InputError
from lib.files import replacing
from lib.model.detector import DistortionDetector, to_pixels
from lib.predict import growing
from lib.predict import prediction as inference
from lib.predict.prediction import augmented, ensemble, fingerprint, predict
from lib.stores import LabelStore, PredictionStore, write_heatmap


@pytest.fixture
def make(experiment):
    return lambda **changes: DistortionDetector.from_checkpoint(experiment(**changes)).eval()


@pytest.fixture
def detector(make):
    return make()


@pytest.fixture
def store(prepared) -> LabelStore:
    return LabelStore(prepared / "val")


@pytest.fixture
def counted(detector):
    """The ids that passed through the network, by patching its text encoder's input."""
    calls = []
    detector.register_forward_hook(lambda module, args, out: calls.append(len(out[1])))
    return calls


def contents(predictions: PredictionStore) -> dict:
    return {id: (predictions.table.at[id, "score"], predictions.heatmap(id).tobytes()) for id in predictions.ids}


def test_the_store_holds_the_forward_pass(detector, store, tmp_path):
    predictions = predict(detector, store, tmp_path / "out", batch_size=3)
    assert predictions.ids == store.ids
    for id in store.ids:
        batch = {
            "pixel_values": to_pixels(store.image(id), (32, 32), "florence2")[None],
            **detector.text([store.table.at[id, "prompt"]]),
        }
        with torch.inference_mode():
            heatmap, score = detector(**batch)
        stored = predictions.heatmap(id)
        assert stored.shape == (32, 32) and stored.dtype == np.uint8
        assert np.abs(stored - heatmap[0].numpy() * 255).max() <= 0.51
        assert predictions.table.at[id, "score"] == pytest.approx(score.item(), abs=1e-5)
        whole = detector.predict(store.image(id), store.table.at[id, "prompt"])
        assert whole.score == pytest.approx(score.item(), abs=1e-6)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 100}, {"batch_size": 3, "num_workers": 2}])
def test_batches_and_workers_do_not_matter(detector, store, tmp_path, options):
    expected = predict(detector, store, tmp_path / "a", batch_size=4)
    found = predict(detector, store, tmp_path / "b", **options)
    assert found.ids == expected.ids
    for id in store.ids:
        assert found.table.at[id, "score"] == pytest.approx(expected.table.at[id, "score"], abs=1e-6)
        assert np.abs(found.heatmap(id).astype(int) - expected.heatmap(id)).max() <= 1


def test_some_images_in_the_order_asked_for(detector, store, tmp_path):
    ids = [store.ids[5], store.ids[0], store.ids[2]]
    predictions = predict(detector, store, tmp_path, ids)
    assert predictions.ids == ids
    assert sorted(path.stem for path in (tmp_path / "heatmaps").iterdir()) == sorted(ids)


def test_labels_are_not_looked_at(detector, store, tmp_path, prepared):
    bare = shutil.copytree(prepared / "val", prepared / "bare")
    try:
        table = pd.read_parquet(bare / "manifest.parquet").assign(labelled=False, score=np.nan, mos=np.nan)
        table.to_parquet(bare / "manifest.parquet", index=False)
        shutil.rmtree(bare / "heatmaps")
        found = predict(detector, LabelStore(bare), tmp_path / "bare")
    finally:
        shutil.rmtree(bare)
    assert contents(found) == contents(predict(detector, store, tmp_path / "labelled"))


def test_the_mask_size_is_the_model_s(make, store, tmp_path):
    predictions = predict(make(mask_size=20), store, tmp_path)
    assert predictions.heatmap(store.ids[0]).shape == (20, 20)


def test_a_detector_in_training_mode_is_evaluated(detector, store, tmp_path):
    expected = contents(predict(detector, store, tmp_path / "a"))
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    assert contents(predict(detector.train(), store, tmp_path / "b")) == expected
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


# Going on


def stopped_at(number: int, monkeypatch, work) -> None:
    """Do `work`, interrupted in place of the heatmap of this number."""
    write, count = growing.write_heatmap, []

    def stop(path, heatmap):
        count.append(path)
        if len(count) == number:
            raise KeyboardInterrupt
        write(path, heatmap)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(growing, "write_heatmap", stop)
        work()


@pytest.fixture
def interrupted(detector, store, tmp_path, monkeypatch):
    """A prediction that was stopped after five of eight images."""
    stopped_at(6, monkeypatch, lambda: predict(detector, store, tmp_path / "out", batch_size=1))
    with pytest.raises(InputError, match="holds no scores.parquet"):
        PredictionStore(tmp_path / "out")
    return tmp_path / "out"


def test_an_interrupted_prediction_goes_on(detector, store, tmp_path, interrupted, counted):
    found = predict(detector, store, interrupted, batch_size=1)
    assert sum(counted) == 3
    assert contents(found) == contents(predict(detector, store, tmp_path / "whole", batch_size=1))


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_half_a_line_is_predicted_again(detector, store, tmp_path, interrupted, counted, cut):
    log = next(interrupted.glob("scores_*.part.jsonl"))
    log.write_bytes(log.read_bytes()[:-cut])
    found = predict(detector, store, interrupted, batch_size=1)
    assert sum(counted) == (3 if cut == 1 else 4)  # a line that only lacks its end is whole
    assert contents(found) == contents(predict(detector, store, tmp_path / "whole", batch_size=1))
    predict(detector, store, interrupted, batch_size=1)
    assert sum(counted) == (3 if cut == 1 else 4) + 8  # and nothing is left to do


def test_a_lost_heatmap_is_predicted_again(detector, store, interrupted, counted):
    next((interrupted / "heatmaps").iterdir()).unlink()
    assert predict(detector, store, interrupted, batch_size=1).ids == store.ids
    assert sum(counted) == 4


def test_a_finished_prediction_is_not_repeated(detector, store, tmp_path, counted):
    first = contents(predict(detector, store, tmp_path))
    counted.clear()
    assert contents(predict(detector, store, tmp_path)) == first and not counted
    assert contents(predict(detector, store, tmp_path, store.ids[:3])).keys() == set(store.ids[:3]) and not counted


def test_other_weights_replace_the_predictions(make, detector, store, interrupted, tmp_path):
    with torch.no_grad():
        detector.score_head.mlp[-1].bias += 1
    found = predict(detector, store, interrupted)
    assert contents(found) == contents(predict(detector, store, tmp_path / "whole"))


@pytest.mark.parametrize("options", [{"flip": True}, {"scales": (0.5, 1.0)}])
def test_other_settings_replace_the_predictions(detector, store, tmp_path, counted, options):
    plain = contents(predict(detector, store, tmp_path))
    counted.clear()
    assert contents(predict(detector, store, tmp_path, **options)) != plain
    assert sum(counted) == 16
    assert contents(predict(detector, store, tmp_path)) == plain


def test_other_data_in_the_same_place_replace_the_predictions(detector, store, tmp_path, prepared, counted):
    folder = shutil.copytree(prepared / "val", prepared / "again")
    try:
        predict(detector, LabelStore(folder), tmp_path)
        counted.clear()
        table = pd.read_parquet(folder / "manifest.parquet").assign(prompt="something else")
        table.to_parquet(folder / "manifest.parquet", index=False)
        predict(detector, LabelStore(folder), tmp_path)
    finally:
        shutil.rmtree(folder)
    assert sum(counted) == 8


@pytest.fixture
def own(raw, tmp_path) -> LabelStore:
    """The split with images of its own, to be replaced."""
    shutil.copytree(raw / "val", tmp_path / "raw" / "val")
    prepare(tmp_path / "raw", tmp_path / "data", ["val"], workers=1)
    return LabelStore(tmp_path / "data" / "val")


def replace_image(store, id) -> None:
    """Another image of the same size, as the next version of a data set has it; the tables stay."""
    path = store.image_path(id)
    cv2.imwrite(str(path), 255 - cv2.imread(str(path)))


def test_replaced_images_are_predicted_again_and_the_others_are_not(detector, own, tmp_path, counted):
    before = contents(predict(detector, own, tmp_path / "out", batch_size=1))
    counted.clear()
    replace_image(own, own.ids[1])
    replace_image(own, own.ids[6])
    after = contents(predict(detector, own, tmp_path / "out", batch_size=1))
    assert sum(counted) == 2
    assert {id for id in own.ids if after[id] != before[id]} == {own.ids[1], own.ids[6]}
    assert after == contents(predict(detector, own, tmp_path / "whole", batch_size=1))


def test_an_interrupted_prediction_does_not_mix_images(detector, own, tmp_path, counted, monkeypatch):
    original = own.image_path(own.ids[0])
    shutil.copy2(original, tmp_path / "copy")
    predict(detector, own, tmp_path / "out", batch_size=1)
    for id in own.ids[:3]:
        replace_image(own, id)
    stopped_at(3, monkeypatch, lambda: predict(detector, own, tmp_path / "out", batch_size=1))
    with pytest.raises(InputError, match="holds no scores.parquet"):  # two are of the new images, one of an old one
        PredictionStore(tmp_path / "out")
    shutil.copy2(tmp_path / "copy", original)  # with the time it had at first
    counted.clear()
    found = predict(detector, own, tmp_path / "out", batch_size=1)
    assert sum(counted) == 2
    assert contents(found) == contents(predict(detector, own, tmp_path / "whole", batch_size=1))


def test_labels_and_other_rows_do_not_matter_to_what_is_predicted(detector, store, tmp_path, prepared, counted):
    folder = shutil.copytree(prepared / "val", prepared / "again")
    try:
        table = pd.read_parquet(folder / "manifest.parquet")
        table.iloc[:6].to_parquet(folder / "manifest.parquet", index=False)
        predict(detector, LabelStore(folder), tmp_path)
        table.iloc[2:].assign(mos=1.5, score=0.125).to_parquet(folder / "manifest.parquet", index=False)
        found = predict(detector, LabelStore(folder), tmp_path)
    finally:
        shutil.rmtree(folder)
    assert sum(counted) == 8 and found.ids == store.ids[2:]


def test_a_lost_image_is_told(detector, own, tmp_path):
    path = own.image_path(own.ids[3])
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name} does not exist; restore it"):
        predict(detector, own, tmp_path / "out")


def test_a_torn_note_is_no_note(detector, store, tmp_path, counted):
    predict(detector, store, tmp_path)
    (tmp_path / "prediction.json").write_text('{"model": "')
    counted.clear()
    assert predict(detector, store, tmp_path).ids == store.ids and sum(counted) == 8


def test_a_gpu_predicts_in_the_precision_of_the_training(detector, store, tmp_path, monkeypatch):
    on_gpu = SimpleNamespace(device=torch.device("cuda"), config=detector.config)
    monkeypatch.setattr(inference, "precision", lambda config: "bf16")
    assert (inference._precision(on_gpu), inference._precision(detector)) == ("bf16", "no")
    plain, seen = predict(detector, store, tmp_path / "out"), []
    monkeypatch.setattr(inference, "_precision", lambda detector: "bf16")
    detector.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    before = contents(plain)
    found = predict(detector, store, tmp_path / "out")  # other numbers, so the same folder is predicted again
    assert set(seen) == {True}
    assert contents(found) != before
    assert all(found.table.at[id, "score"] == pytest.approx(before[id][0], abs=0.02) for id in store.ids)


def test_a_validation_predicts_in_the_precision_around_it(detector, store, tmp_path):
    seen = []
    detector.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predict(detector, store, tmp_path / "out")
    assert set(seen) == {True}


def test_a_folder_of_something_else_is_left_alone(detector, prepared, tmp_path):
    labels = shutil.copytree(prepared / "train", tmp_path / "train")
    before = sorted(path.name for path in (labels / "heatmaps").iterdir())
    with pytest.raises(
        InputError, match="train holds heatmaps that are no predictions of this kit; give another folder"
    ):
        predict(detector, LabelStore(prepared / "train"), labels)
    assert sorted(path.name for path in (labels / "heatmaps").iterdir()) == before
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("mine")
    predict(detector, LabelStore(prepared / "val"), tmp_path / "work")
    assert (tmp_path / "work" / "thesis.tex").read_text() == "mine"


def test_nothing_to_predict(detector, store, tmp_path):
    with pytest.raises(InputError, match="val holds no image to predict"):
        predict(detector, store, tmp_path / "out", [])


def test_a_place_that_cannot_be_written(detector, store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/out cannot be written .*; give a folder with write access"):
        predict(detector, store, tmp_path / "file" / "out")


@pytest.mark.parametrize("place", ["lib.predict.growing.write_heatmap", "pandas.DataFrame.to_parquet"])
def test_a_full_disk_is_told_and_the_prediction_goes_on(detector, store, tmp_path, monkeypatch, place):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = contents(predict(detector, store, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(InputError, match="out cannot be written: the disk is full; free space and run the same"):
            predict(detector, store, tmp_path / "out")
    assert contents(predict(detector, store, tmp_path / "out")) == whole


@pytest.mark.parametrize("output", [0, 1], ids=["heatmap", "score"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
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


def test_any_id_survives(detector, prepared, tmp_path):
    folder = shutil.copytree(prepared / "val", prepared / "odd")
    ids = ["ä ö.1", "a\u2028b", "猫", '"quoted"', "a.b.c", "-1", "007", "x" * 60]
    try:
        table = pd.read_parquet(folder / "manifest.parquet")
        for old, new in zip(table["id"], ids, strict=True):
            (folder / "heatmaps" / f"{old}.png").rename(folder / "heatmaps" / f"{new}.png")
        table.assign(id=ids).to_parquet(folder / "manifest.parquet", index=False)
        store = LabelStore(folder)
        assert predict(detector, store, tmp_path).ids == ids
        assert len(contents(predict(detector, store, tmp_path))) == 8
    finally:
        shutil.rmtree(folder)


def test_progress_is_told_at_the_end(detector, store, tmp_path, capsys):
    predict(detector, store, tmp_path / "a")
    assert f"predicted 8/8 images of {store.path}" in capsys.readouterr().out
    predict(detector, store, tmp_path / "b", progress=False)
    assert capsys.readouterr().out == ""


# What makes two predictions the same


def test_fingerprints_tell_weights_and_settings_apart(make):
    detector = make()
    base = fingerprint(detector)
    assert base == fingerprint(make()) == fingerprint(detector.train())
    others = [make(seed=1), make(input_size=48), make(mask_size=16), make(text_padding="max_length"), make(lora_rank=2)]
    assert len({base, *(fingerprint(other) for other in others)}) == 6
    with torch.no_grad():
        detector.score_head.mlp[1].running_var[0] += 1e-6
    assert fingerprint(detector) != base


# Views


def batch_of(store, detector, ids):
    pixels = torch.stack([to_pixels(store.image(id), detector.config.input_shape, "florence2") for id in ids])
    return {"pixel_values": pixels, **detector.text(["a man"] * len(ids))}


def test_a_mirrored_view_is_the_plain_one_when_asked_for_one(detector, store):
    batch = batch_of(store, detector, store.ids[:2])
    with torch.inference_mode():
        heatmap, score = augmented(detector, batch, False, (1.0,))
        plain = detector(**batch)
    assert torch.equal(heatmap, plain[0]) and torch.equal(score, plain[1])


def test_flip_averages_with_the_mirrored_image_mirrored_back(detector, store):
    batch = batch_of(store, detector, store.ids[:2])
    mirrored = {**batch, "pixel_values": batch["pixel_values"].flip(-1)}
    with torch.inference_mode():
        heatmap, score = augmented(detector, batch, True, (1.0,))
        other = augmented(detector, mirrored, True, (1.0,))
        plain, turned = detector(**batch), detector(**mirrored)
    torch.testing.assert_close(heatmap, (plain[0] + turned[0].flip(-1)) / 2)
    torch.testing.assert_close(score, (plain[1] + turned[1]) / 2)
    # Equivariant: the mirrored image has the mirrored heatmap and the same score.
    torch.testing.assert_close(other[0], heatmap.flip(-1))
    torch.testing.assert_close(other[1], score)
    assert not torch.allclose(plain[0], turned[0].flip(-1), atol=1e-4)  # which it has not by itself


def test_scales_are_rounded_to_the_stride_and_averaged(make, store):
    detector = make(input_size=64)
    batch = batch_of(store, detector, store.ids[:2])
    sides = []
    hook = detector.encoder.register_forward_hook(
        lambda m, a, kw, out: sides.append(kw["pixel_values"].shape[-1]), with_kwargs=True
    )
    with torch.inference_mode():
        heatmap, score = augmented(detector, batch, False, (1.0, 0.7, 1.3))
        hook.remove()
        parts = [augmented(detector, batch, False, (scale,)) for scale in (1.0, 0.7, 1.3)]
    assert sides == [64, 48, 80]
    torch.testing.assert_close(heatmap, torch.stack([part[0] for part in parts]).mean(0))
    torch.testing.assert_close(score, torch.stack([part[1] for part in parts]).mean(0))
    assert heatmap.shape == (2, 32, 32)


@pytest.mark.parametrize(
    "scales, told",
    [((), "factors above 0"), ((0.0,), "factors above 0"), ((-1.0,), "factors above 0"),
     ((float("nan"),), "factors above 0"), ((1.0, 60.0), "50 positions a side")],
)  # fmt: skip
def test_scales_that_cannot_work_are_refused_before_anything_is_written(detector, store, tmp_path, scales, told):
    with pytest.raises(InputError, match=told):
        predict(detector, store, tmp_path / "out", scales=scales)
    assert not (tmp_path / "out").exists()


def test_a_head_that_cannot_do_a_scale_is_told(make, store, tmp_path):
    with pytest.raises(InputError, match="score_head: conv needs a grid"):
        predict(make(input_size=80, score_head="conv"), store, tmp_path / "out", scales=(0.5,))


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
    mean = ensemble(runs, tmp_path / "mean")
    assert mean.ids == ["x", "y"]
    assert mean.heatmap("x").tolist() == [[0, 150], [100, 255]]  # 150.5 rounds to even
    assert mean.heatmap("y").tolist() == [[4, 4], [4, 4]]
    assert mean.table["score"].tolist() == pytest.approx([0.4, 0.75])


def test_weights_count(runs, tmp_path):
    mean = ensemble(runs, tmp_path / "mean", [3, 1])
    assert mean.heatmap("x").tolist() == [[0, 125], [150, 255]]
    assert mean.table["score"].tolist() == pytest.approx([0.3, 0.875])
    only = ensemble(runs, tmp_path / "only", [0, 2.5])
    assert contents(only)["y"] == contents(runs[1])["y"]


def test_one_run_is_itself_and_order_does_not_matter(runs, tmp_path):
    assert contents(ensemble(runs[:1], tmp_path / "one")) == contents(runs[0])
    there, back = ensemble(runs, tmp_path / "there"), ensemble(runs[::-1], tmp_path / "back")
    assert {id: value[1] for id, value in contents(there).items()} == {
        id: value[1] for id, value in contents(back).items()
    }


def test_heatmaps_of_other_sizes_are_resized(tmp_path):
    a = written(tmp_path / "a", {"x": np.zeros((4, 4))}, {"x": 0.0})
    b = written(tmp_path / "b", {"x": np.kron([[0, 200], [100, 0]], np.ones((4, 4)))}, {"x": 1.0})
    assert (
        ensemble([a, b], tmp_path / "mean").heatmap("x").tolist()
        == np.kron([[0, 100], [50, 0]], np.ones((2, 2))).tolist()
    )


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


@pytest.fixture
def averaged(monkeypatch):
    """The ids whose heatmap an ensemble has written."""
    write, ids = growing.write_heatmap, []
    monkeypatch.setattr(growing, "write_heatmap", lambda path, heatmap: (ids.append(path.stem), write(path, heatmap)))
    return ids


def test_an_interrupted_ensemble_goes_on_and_a_finished_one_stands(runs, tmp_path, averaged, monkeypatch):
    stopped_at(2, monkeypatch, lambda: ensemble(runs, tmp_path / "mean"))
    assert averaged == ["x"] and not (tmp_path / "mean" / "scores.parquet").exists()
    mean = ensemble(runs, tmp_path / "mean")
    assert averaged == ["x", "y"]
    assert contents(mean) == contents(ensemble(runs, tmp_path / "whole"))
    averaged.clear()
    assert contents(ensemble(runs, tmp_path / "mean")) == contents(mean) and not averaged
    ensemble(runs, tmp_path / "mean", [1, 3])
    assert averaged == ["x", "y"]


def test_what_a_member_predicted_anew_is_averaged_again(runs, tmp_path, averaged):
    ensemble(runs, tmp_path / "mean")
    averaged.clear()
    write_heatmap(tmp_path / "a" / "heatmaps" / "x.png", np.full((2, 2), 10, np.uint8))
    assert ensemble(runs, tmp_path / "mean").heatmap("x").tolist() == [[5, 106], [5, 132]]
    assert averaged == ["x"]
    runs[1].table.assign(score=[0.5, 0.8]).reset_index().to_parquet(tmp_path / "b" / "scores.parquet", index=False)
    changed = [runs[0], PredictionStore(tmp_path / "b")]
    assert ensemble(changed, tmp_path / "mean").table["score"].to_dict() == pytest.approx({"x": 0.5, "y": 0.75})
    assert averaged == ["x", "x"]
    rows = (tmp_path / "mean" / "scores_0.part.jsonl").read_text().splitlines()
    assert sorted(json.loads(row)["id"] for row in rows) == ["x", "y"]
