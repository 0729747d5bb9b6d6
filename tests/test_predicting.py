"""Ensembles, sharing among processes: as notebook 3 asks for them, and as the later notebooks see them."""

import json
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from example_evaluations import finished

from lib.config import Experiment
from lib.errors import InputError
from lib.evaluate.evaluation import keep, measured_at_best, summarise
from lib.evaluate.predicting import Job, predict_jobs, predict_splits
from lib.evaluate.run_on_split import open_run, unpredicted
from lib.evaluation_file import write_evaluation
from lib.metrics.setting import Grid, Setting, Smoothed
from lib.stores import PredictionStore

SPLITS = ["val", "test"]


@pytest.fixture(scope="module")
def runs(micro_experiment, tmp_path_factory):
    """Folders of two runs with different heads, as training leaves them, without the training."""
    folder = tmp_path_factory.mktemp("runs")
    return [finished(micro_experiment(folder, experiment_name=f"run_{seed}", seed=seed)) for seed in (1, 2)]


def predicted(*runs, **options) -> list:
    return predict_splits(runs, SPLITS, batch_size=8, **options)


def test_an_ensemble_averages_the_runs_and_opens_like_a_run(runs):
    pair = predicted(runs[0], str(runs[1]), weights=[3, 1])
    stores, test = [PredictionStore(run / "predictions" / "test") for run in runs], pair[1]
    assert test.folder == runs[0].parent / "run_1+run_2"
    for id in test.images:
        a, b = (store.heatmap(id).astype(float) for store in stores)
        assert (test.source.heatmap(id) == np.round(0.75 * a + 0.25 * b)).all()
    scores = [store.table["score"] for store in stores]
    pd.testing.assert_series_equal(test.source.table["score"], 0.75 * scores[0] + 0.25 * scores[1])
    summary = summarise(measured_at_best(pair, Grid((50, 100))), "", {}, resamples=5)
    assert "train" not in summary and summary["figures"]
    write_evaluation(test.folder, summary)
    opened = open_run(test.folder, "test")
    assert opened.threshold == summary["threshold"] and opened.labels.path == test.labels.path
    assert opened.labelled_ids == test.labelled_ids
    assert json.loads((test.folder / "ensemble.json").read_text())["weights"] == [3, 1]
    assert Experiment.from_yaml(test.folder / "config.yaml").experiment_name == "run_1+run_2"
    # Other weights are another ensemble, of the same predictions.
    _, other = predicted(*runs, weights=[1, 1])
    assert other.place != test.place and other.place.parent == test.place.parent


def test_another_setting_leaves_predictions_and_figures_where_they_are(runs):
    """Which of them the later notebooks open is chosen by name; what belongs to the run is what came first."""
    run = finished(replace(Experiment.from_yaml(runs[0] / "config.yaml"), experiment_name="apart"))
    evaluated = {}
    for flip in (True, False):
        _, test = predicted(run, flip=flip)
        test = replace(test, setting=Setting(40 + 9 * flip, smoothing=30.0 * flip))
        evaluated[flip] = keep(test, summarise(test.measured(), "", {}, 5))
    assert evaluated[True] == run / "evaluation.json"
    own, other = open_run(run, "test"), open_run(run, "test-flip_False_scales_1.0")
    assert (own.threshold, other.threshold) == (49, 40) and own.split == other.split == "test"
    assert other.place == evaluated[False].parent and other.source.table.index.equals(own.source.table.index)
    assert not np.allclose(own.source.table["score"], other.source.table["score"])
    assert predicted(run, flip=True)[1].place == own.place  # and again: nothing new
    plain, blurred = (Smoothed(own.source, sigma).heatmap(own.images[0]) for sigma in (0.0, 30.0))
    assert (own.predictions.heatmap(own.images[0]) == blurred).all() and (blurred != plain).any()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weights": [1.0]}, "need an ensemble"),
        ({"others": ["run_1"]}, "run_1 is named twice"),
        ({"others": ["run_2"], "name": "run_2"}, "run_2 exists and is no ensemble"),
        ({"others": ["run_2"], "name": "a/b"}, "one plain folder name"),
        ({"others": ["run_2"], "weights": [1.0, 2.0, 3.0], "name": "three"}, "2 runs need as many weights"),
        ({"others": ["run_2"], "weights": [1.0, "a"], "name": "text"}, "2 runs need as many weights"),
        ({"others": ["nowhere"]}, "nowhere holds no config.yaml"),
    ],
)
def test_ensembles_that_cannot_be_meant(runs, options, told):
    given = dict(options)
    others = [runs[0].parent / name for name in given.pop("others", [])]
    with pytest.raises(InputError, match=told):
        predicted(runs[0], *others, **given)


def jobs_of(run, into, splits=SPLITS) -> list[Job]:
    data = Experiment.from_yaml(run / "config.yaml").data_path
    return [Job(on.labels, on.images, into / on.split) for on in (unpredicted(run, data, name) for name in splits)]


def test_processes_share_a_prediction(runs, tmp_path, capfd):
    alone = predict_jobs(runs[0], jobs_of(runs[0], tmp_path / "one"), batch_size=3)
    shared = predict_jobs(runs[0], jobs_of(runs[0], tmp_path / "two"), processes=2, batch_size=3)
    for store, other in zip(shared, alone, strict=True):
        assert store.ids == other.ids
        np.testing.assert_allclose(store.table["score"], other.table["score"], atol=1e-6)
        for id in store.ids:
            assert np.abs(store.heatmap(id).astype(int) - other.heatmap(id)).max() <= 1
    # Both processes had work: each keeps its own list.
    assert len(list((tmp_path / "two" / "test").glob("scores_*.part.jsonl"))) == 2
    assert "predicted 4/4 images" in capfd.readouterr().out


def test_a_killed_shared_prediction_goes_on_with_another_number_of_processes(runs, fork_server, tmp_path):
    """Of eight images the first process writes one, the second three; one at a time, so that all sums are the same."""
    job, options = tmp_path / "job.json", {"batch_size": 1}
    [whole] = predict_jobs(runs[0], jobs_of(runs[0], tmp_path / "whole", ["test"]), **options)
    [work] = jobs_of(runs[0], tmp_path, ["test"])
    jobs = [[str(work.labels.path), work.ids, str(work.folder)]]
    job.write_text(json.dumps({"run": str(runs[0]), "jobs": jobs, "options": options}))
    children = fork_server.start_ranks("killing", "predict_and_wait", [str(job), [1, 3]], tmp_path)
    try:
        children[0].wait_until(lambda: len(lines(tmp_path / "test")) == 4)
    finally:
        assert [child.kill() for child in children] == [-signal.SIGKILL] * 2
    assert not (tmp_path / "test" / "scores.parquet").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "test" / "heatmaps").iterdir()}
    children = fork_server.start_ranks("lib.evaluate.predicting", "main", [[str(job)]], tmp_path, 3)
    assert [child.wait() for child in children] == [0] * 3
    assert len(before) == 4 and all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(lines(tmp_path / "test")) == 8
    found = PredictionStore(tmp_path / "test")
    pd.testing.assert_frame_equal(found.table, whole.table)
    assert all((found.heatmap(id) == whole.heatmap(id)).all() for id in whole.ids)


def lines(store) -> list[str]:
    """What all processes have noted of their images."""
    return [line for log in store.glob("scores_*.part.jsonl") for line in log.read_text().splitlines()]
