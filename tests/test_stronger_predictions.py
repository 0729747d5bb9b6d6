"""Ensembles, smoothing, sharing among processes: as notebook 3 asks for them, and as the later notebooks see them."""

import json
import signal

import numpy as np
import pandas as pd
import pytest
import torch

from lib.config import Experiment
from lib.errors import InputError
from lib.evaluate import effects, run_on_split
from lib.evaluate.effects import measure_effects
from lib.evaluate.evaluation import Evaluation, write_evaluation
from lib.metrics.calibration import Smoothed
from lib.metrics.setting import Setting
from lib.model.detector import DistortionDetector
from lib.predict.processes import predict_splits
from lib.predict.splits import Split
from lib.reports.evaluation import effects_table
from lib.stores import PredictionStore


@pytest.fixture(scope="module")
def runs(micro_experiment, tmp_path_factory):
    """Folders of two runs with different heads, as training leaves them, without the training."""
    folder = tmp_path_factory.mktemp("runs")
    return [untrained(micro_experiment(folder, experiment_name=f"run_{seed}", seed=seed)) for seed in (1, 2)]


def untrained(config: Experiment):
    config.save(config.folder / "config.yaml")
    DistortionDetector.from_checkpoint(config).save_pretrained(config.folder / "model")
    (config.folder / "finished.json").write_text(json.dumps({"seconds": 1.0}))
    return config.folder


def evaluated(run, smoothings=(0.0,), **options) -> Evaluation:
    one = Evaluation(run, "test", batch_size=8, **options)
    one.predict()
    one.judge(step=50, smoothings=smoothings)
    return one


def test_an_ensemble_averages_the_runs_and_opens_like_a_run(runs):
    one = evaluated(runs[0], others=[str(runs[1])], weights=[3, 1])
    assert one.folder == runs[0].parent / "run_1+run_2"
    stores = [member["test"] for member in one.members]
    for id in one.split.ids:
        a, b = (store.heatmap(id).astype(float) for store in stores)
        assert (one.predictions["test"].heatmap(id) == np.round(0.75 * a + 0.25 * b)).all()
    scores = [store.table["score"] for store in stores]
    pd.testing.assert_series_equal(one.predictions["test"].table["score"], 0.75 * scores[0] + 0.25 * scores[1])
    summary = one.summarise(resamples=5)
    assert summary["before"] is None and "train" not in summary and summary["figures"]
    write_evaluation(one.folder, summary)
    opened = run_on_split.open_run(one.folder, "test")
    assert opened.threshold == one.setting.threshold and opened.labels.path == one.split.store.path
    assert json.loads((one.folder / "ensemble.json").read_text())["weights"] == [3, 1]
    assert Experiment.from_yaml(one.folder / "config.yaml").experiment_name == "run_1+run_2"


def test_an_ensemble_leaves_alone_what_was_measured_of_its_runs(runs):
    alone = evaluated(runs[0], flip=True)
    note, heatmap = alone.predictions["test"].path / "prediction.json", alone.predictions["test"].heatmap("test_000000")
    before = note.stat().st_mtime_ns
    same = evaluated(runs[0], others=[runs[1]], flip=True, name="same_views")
    assert same.members[0]["test"].path == runs[0] / "predictions" / "test"  # not predicted twice
    other = evaluated(runs[0], others=[runs[1]], scales=(1.0, 2.0), name="other_views")
    assert other.members[0]["test"].path == other.folder / "members" / "0_run_1" / "test"
    assert note.stat().st_mtime_ns == before and json.loads(note.read_text())["scales"] == [1.0]
    assert (PredictionStore(note.parent).heatmap("test_000000") == heatmap).all()


def test_ensembles_that_cannot_be_meant(runs, tmp_path):
    with pytest.raises(InputError, match="need an ensemble"):
        Evaluation(runs[0], "test", weights=[1.0])
    with pytest.raises(InputError, match="run_1 is named twice"):
        Evaluation(runs[0], "test", others=[runs[0]])
    with pytest.raises(InputError, match="run_2 exists and is no ensemble"):
        Evaluation(runs[0], "test", others=[runs[1]], name="run_2")
    with pytest.raises(InputError, match="one plain folder name"):
        Evaluation(runs[0], "test", others=[runs[1]], name="a/b")
    with pytest.raises(InputError, match="2 runs need as many weights"):
        evaluated(runs[0], others=[runs[1]], weights=[1.0, 2.0, 3.0], name="three")
    with pytest.raises(InputError, match="nowhere"):
        evaluated(runs[0], others=[tmp_path / "nowhere"])
    with pytest.raises(InputError, match="min_areas and smoothings need at least one"):
        evaluated(runs[0], smoothings=())


def test_chosen_smoothing_reaches_the_later_notebooks_and_the_submission(runs):
    one = evaluated(runs[1])
    one.setting = Setting(one.setting.threshold, smoothing=30.0)
    write_evaluation(runs[1], one.summarise(before=False, resamples=5))
    opened = run_on_split.open_run(runs[1], "test")
    raw, id = one.predictions["test"], one.split.ids[0]
    blurred = Smoothed(raw, 30.0).heatmap(id)
    assert (opened.predictions.heatmap(id) == blurred).all() and (blurred != raw.heatmap(id)).any()
    assert (one.reported.heatmap(id) == blurred).all()
    assert opened.predictions.path == raw.path


def test_smoothing_is_chosen_where_it_helps(runs):
    """Label heatmaps under salt and pepper: only a blur brings the regions back together."""
    one = Evaluation(runs[0], "test")
    rng = np.random.default_rng(0)

    class Noisy:
        def __init__(self, store):
            self.ids, self.table, self.store = store.ids, store.table, store
            self.noise = {id: rng.random(store.heatmap(id).shape) < 0.5 for id in store.ids}

        def heatmap(self, id):
            return np.where(self.noise[id], 0, (self.store.heatmap(id) > 0) * 255).astype(np.uint8)

    one.predictions = {split.name: Noisy(split.store) for split in one.pair}
    assert "blurred by 6 pixels" in one.judge(step=25, smoothings=[0.0, 6.0])
    assert one.setting.smoothing == 6.0
    smooth = one.judged.figures()["final_score"]
    one.judge(step=25)
    assert smooth > one.judged.figures()["final_score"]


def test_effects_measure_each_technique_alone(runs):
    one = evaluated(runs[0], smoothings=(0.0, 8.0), flip=True, scales=(1.0, 2.0), others=[runs[1]], name="effects")
    effects = measure_effects(one, resamples=20)
    assert list(effects.index) == ["plain", "flip", "scales", "smoothing", "ensemble", "together"]
    assert effects.at["together", "final_score"] == pytest.approx(one.judged.figures()["final_score"])
    alone = evaluated(runs[0]).judged.figures()["final_score"]
    assert effects.at["plain", "final_score"] == pytest.approx(alone)
    flipped = evaluated(runs[0], flip=True).judged.figures()["final_score"]
    assert effects.at["flip", "final_score"] == pytest.approx(flipped)
    assert effects.at["flip", "difference"] == pytest.approx(flipped - alone)
    assert np.isnan(effects.at["plain", "p"]) and (effects["low"] <= effects["high"]).sum() == 5
    written = json.loads(write_evaluation(one.folder, {"split": "test"}, effects).read_text())
    assert list(written["effects"]) == list(effects.index) and written["effects"]["plain"]["p"] is None
    assert written["effects"]["flip"]["difference"] == pytest.approx(flipped - alone)
    table, says = effects_table(effects.assign(low=-1.0, high=1.0))
    assert "Difference" in table.to_html() and says == "None differs from the plain prediction beyond chance."
    sure = effects.assign(low=[np.nan, 0.01, -1, -1, -1, -1], high=1.0, difference=0.02)
    assert effects_table(sure)[1] == "Beyond chance: flip +0.020."
    assert effects_table(None) == (None, "Not measured; give effects = true to measure each on its own.")


def test_all_together_is_judged_like_each_alone(runs):
    """A threshold by hand is one that no pixel reaches: the others do not use it, so neither must this row."""
    options = {"flip": True, "others": [runs[1]], "name": "by_hand"}
    by_itself = evaluated(runs[0], **options)
    expected = measure_effects(by_itself, resamples=5)
    by_hand = evaluated(runs[0], **options)
    by_hand.judge(threshold=250, step=50)
    assert by_hand.judged.figures()["f1_score"] == 0 < expected.at["together", "f1_score"]
    pd.testing.assert_frame_equal(measure_effects(by_hand, resamples=5), expected)


@pytest.mark.parametrize(
    ("options", "computed"),
    [
        ({"smoothings": (0.0, 8.0)}, []),
        ({"flip": True}, [("run_1", False, (1.0,))]),
        ({"scales": (1.0, 2.0), "smoothings": (0.0, 8.0)}, [("run_1", False, (1.0,))]),
        ({"name": "plain_pair"}, []),
        ({"name": "both", "flip": True, "scales": (2.0,)}, [
            ("run_1", False, (1.0,)), ("run_2", False, (1.0,)), ("run_1", True, (1.0,)), ("run_1", False, (2.0,)),
        ]),
    ],
    ids=["smoothing", "flip", "scales and smoothing", "ensemble", "all"],
)  # fmt: skip
def test_effects_do_not_repeat_what_the_evaluation_has_predicted(runs, monkeypatch, options, computed):
    one = evaluated(runs[0], **options, others=[runs[1]] if "name" in options else [])
    calls = []

    def counted(splits, *arguments, **options):
        calls.append((splits[0].run.name, options["flip"], options["scales"]))
        return predict_splits(splits, *arguments, **options)

    monkeypatch.setattr(effects, "predict_splits", counted)
    found = measure_effects(one, resamples=5)
    assert calls == computed
    assert found.at["plain", "final_score"] == pytest.approx(evaluated(runs[0]).judged.figures()["final_score"])


def test_without_techniques_or_labels_there_are_no_effects(runs):
    plain = evaluated(runs[0])
    assert measure_effects(plain).empty and "Nothing to measure" in effects_table(measure_effects(plain))[1]
    plain.judged_on = None
    plain.options["flip"] = True
    assert measure_effects(plain).empty


def test_processes_share_a_prediction(runs, tmp_path, capfd):
    data = Experiment.from_yaml(runs[0] / "config.yaml").data_path
    splits = [Split(runs[0], data, name) for name in ("val", "test")]
    alone = predict_splits(splits, batch_size=3, into=tmp_path / "one")
    shared = predict_splits(splits, processes=2, batch_size=3, into=tmp_path / "two")
    for name, store in shared.items():
        assert store.ids == alone[name].ids
        np.testing.assert_allclose(store.table["score"], alone[name].table["score"], atol=1e-6)
        for id in store.ids:
            assert np.abs(store.heatmap(id).astype(int) - alone[name].heatmap(id)).max() <= 1
    # Both processes had work: each keeps its own list.
    assert len(list((tmp_path / "two" / "test").glob("scores_*.part.jsonl"))) == 2
    assert "predicted 4/4 images" in capfd.readouterr().out


@pytest.mark.parametrize("resumed_by", [1, 3])
def test_a_killed_shared_prediction_goes_on_with_another_number_of_processes(runs, fork_server, tmp_path, resumed_by):
    """Of eight images the first process writes one, the second three; one at a time, so that all sums are the same."""
    data = Experiment.from_yaml(runs[0] / "config.yaml").data_path
    split, job, options = Split(runs[0], data, "test"), tmp_path / "job.json", {"batch_size": 1}
    whole = predict_splits([split], into=tmp_path / "whole", **options)["test"]
    what = {"run": str(runs[0]), "data_path": data, "folder": str(tmp_path), "splits": ["test"], "options": options}
    job.write_text(json.dumps(what))
    children = fork_server.start_ranks("killing", "predict_and_wait", [str(job), [1, 3]], tmp_path)
    try:
        children[0].wait_until(lambda: len(lines(tmp_path / "test")) == 4)
    finally:
        assert [child.kill() for child in children] == [-signal.SIGKILL] * 2
    assert not (tmp_path / "test" / "scores.parquet").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "test" / "heatmaps").iterdir()}
    if resumed_by == 1:
        predict_splits([split], into=tmp_path, **options)
    else:
        children = fork_server.start_ranks("lib.predict.processes", "main", [[str(job)]], tmp_path, resumed_by)
        assert [child.wait() for child in children] == [0] * resumed_by
    assert len(before) == 4 and all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(lines(tmp_path / "test")) == 8
    found = PredictionStore(tmp_path / "test")
    pd.testing.assert_frame_equal(found.table, whole.table)
    assert all((found.heatmap(id) == whole.heatmap(id)).all() for id in whole.ids)


def lines(store) -> list[str]:
    """What all processes have noted of their images."""
    return [line for log in store.glob("scores_*.part.jsonl") for line in log.read_text().splitlines()]


def test_what_a_shared_prediction_finds_wrong_is_one_sentence(runs, tmp_path, capfd):
    data = Experiment.from_yaml(runs[0] / "config.yaml").data_path
    splits = [Split(runs[0], data, "test")]
    with pytest.raises(InputError, match="scales .* must be factors above 0"):
        predict_splits(splits, processes=2, into=tmp_path, scales=(0.0,))
    assert "Traceback" not in capfd.readouterr().out
    with pytest.raises(InputError, match="num_processes: 0 must be at least 1"):
        predict_splits(splits, processes=0)
    if not torch.cuda.is_available():
        assert not (tmp_path / "test" / "scores.parquet").exists()
