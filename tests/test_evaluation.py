"""What notebook 3 measures of a run: where the setting comes from, baselines, undefined figures, keys."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from example_evaluations import finished, forget_labels, painted
from example_runs import CASES, write_run, write_split

from lib.data.splits import hold_out
from lib.errors import InputError
from lib.evaluate import evaluation
from lib.evaluate.evaluation import calibration_split, measured_at_best
from lib.evaluate.predicting import predict_splits
from lib.evaluate.run_on_split import RunOnSplit, open_run, run_config, unpredicted
from lib.evaluation_file import read_evaluation, write_evaluation
from lib.metrics.counts import challenge_figures, score_table, sweep
from lib.metrics.figures import FIGURES
from lib.metrics.setting import Grid, Setting
from lib.model import DistortionDetector
from lib.plots import difference_in_words, figure_in_words
from lib.stores import LabelStore, write_heatmap
from lib.train import train


@pytest.fixture
def run(experiment, own):
    """A run as training leaves it, without the training."""
    return finished(experiment(data_path=str(own)))


def paint(run, own, **values):
    """Both splits with painted predictions: {split: (value of true regions, of false ones)}."""
    pair = [unpredicted(run, own, name) for name in values]
    return [replace(on, source=painted(on.labels, *values[on.split])) for on in pair]


def test_the_threshold_is_chosen_on_one_split_and_applied_to_the_other(run, own):
    # On val the best thresholds lie in 40..99, on test in 150..199: its own best must not be found.
    pair, grid = paint(run, own, val=(100, 40), test=(200, 150)), Grid(tuple(range(5, 255, 5)))
    on = measured_at_best(pair, grid)
    best = pair[1].measured(grid.thresholds).curve.set_index("threshold")["final_score"]
    assert on.threshold == 40 and best[150] > on.figures()["final_score"] == best[40] and best[150] == best.max()


def test_evaluation_from_end_to_end(run):
    """The run is its own baseline, so that there is no difference."""
    pair, grid = predict_splits([run], ["val", "test"], batch_size=8), Grid(tuple(range(25, 255, 25)))
    assert (run / "predictions" / "test" / "scores.parquet").is_file()
    reported = measured_at_best(pair, grid)
    baselines = {"trivial": measured_at_best(evaluation.trivial(pair), grid), "frozen": reported}
    summary = evaluation.summarise(reported, "why", baselines, resamples=20)
    path = write_evaluation(run, summary)
    read = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert read == summary == read_evaluation(run)
    assert set(read) == {
        "data_path", "split", "threshold", "min_area_ratio", "smoothing", "chosen", "n_images", "figures", "intervals",
        "trivial", "frozen", "by_domain", "train",
    }  # fmt: skip
    assert read["chosen"] == "why" and read["data_path"] == run_config(run).data_path
    assert (read["split"], read["n_images"]) == ("test", 8) and read["threshold"] in grid.thresholds
    for part in (read, read["trivial"], read["frozen"], *read["by_domain"].values()):
        assert set(part["intervals"]) == set(FIGURES) <= set(part.get("figures", part))
    assert read["train"].items() >= {"seconds": 12.5, "trained_share_of_encoder": 1.0}.items()
    assert read["train"]["run_megabytes"] > 0.05
    trivial, frozen = read["trivial"], read["frozen"]
    assert trivial["plcc"] is None and trivial["srcc"] is None  # constant scores: null, and 0 in the final score
    assert trivial["final_score"] == pytest.approx(0.7 * trivial["f1_score"])
    assert sum(group["n_images"] for group in read["by_domain"].values()) == 8
    assert frozen["final_score"] == pytest.approx(read["figures"]["final_score"])
    said = "no significant difference: this run - encoder frozen = 0.000 (0.000 to 0.000)"
    assert difference_in_words("this run", "encoder frozen", frozen["ahead"]) == said
    (run / "finished.json").unlink()
    with pytest.raises(InputError, match="the training has not ended"):
        evaluation.training_facts(run)


def test_the_baseline_with_the_encoder_frozen_has_trained_heads_alone(experiment, own):
    """`epoch: 0` ends a run with its warm-up."""
    config = experiment(data_path=str(own), experiment_name="frozen", epoch=0, warmup_epoch=1).resolved()
    before = DistortionDetector.from_checkpoint(config).state_dict()
    frozen = train(config)
    after = DistortionDetector.from_pretrained(frozen).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any(name.startswith("encoder.") for name in moved)
    pair, grid = paint(frozen, own, val=(200, 0), test=(200, 0)), Grid((50, 100, 150))
    other = measured_at_best(predict_splits([frozen], ["val", "test"], batch_size=8), grid)
    reported = replace(pair[1], setting=Setting(100)).measured()
    ahead = evaluation.summarise(reported, "", {"frozen": other}, resamples=20)["frozen"]["ahead"]
    assert ahead["low"] <= ahead["difference"] <= ahead["high"] and ahead["difference"] > 0


def test_groups_have_figures_of_their_own(run, own):
    path = own / "test" / "manifest.parquet"
    manifest = pd.read_parquet(path)
    manifest.assign(domain=["shown", "", None, *["shifted"] * (len(manifest) - 3)]).to_parquet(path)
    [test] = paint(run, own, test=(200, 0))
    reported = replace(test, setting=Setting(100)).measured()
    table, found = reported.labels.table, reported.by_group("domain", 5)
    assert {name: row["n_images"] for name, row in found.items()} == {"shown": 1, "unknown": 2, "shifted": 5}
    ids = list(table.index[table["domain"] == "shifted"])
    counts, scores = sweep(test.source, test.labels, [100], ids), score_table(test.source, test.labels, ids)
    assert found["shifted"]["f1_score"] == pytest.approx(challenge_figures(counts, scores)["f1_score"])
    said = f"shown: {found['shown']['final_score']:.3f} (too few images for an interval)"
    assert figure_in_words("shown", found["shown"]) == said and reported.by_group("no such column", 5) == {}


def test_the_setting_is_chosen_on_another_split_than_the_reported_one(experiment, own):
    options = {"data_path": str(own), "val_split": 6}
    run, same, other = (
        finished(experiment(experiment_name=name, seed=seed, **options))
        for name, seed in (("a", 2), ("b", 2), ("c", 3))
    )
    without = finished(experiment(experiment_name="d", data_path=str(own)))
    chosen = {name: calibration_split([run], own, name) for name in ("test", "val", "held_out")}
    assert chosen == {"test": "val", "val": "held_out", "held_out": "val"}
    assert calibration_split([run], own, "val", "val") == "val"  # by wish
    # Another run of an ensemble has trained on some of what the first held out.
    chosen = [calibration_split([run, one], own, "val") for one in (same, other, without)]
    assert chosen == ["held_out", "val", "val"]
    forget_labels(own / "val")
    chosen = [calibration_split([run], own, name) for name in ("test", "val", "held_out")]
    assert chosen == ["held_out"] * 3
    assert unpredicted(run, own, "held_out").labelled_ids == hold_out(own, 6, 2)
    assert calibration_split([run, other], own, "test") == calibration_split([without], own, "test") == ""
    with pytest.raises(InputError, match="val has no labels to choose a threshold on"):
        calibration_split([run], own, "test", "val")
    shutil.rmtree(own / "val")
    assert calibration_split([run], own, "test") == "held_out"


def test_the_trivial_baseline_is_the_mean_of_train_without_held_out_images(experiment, own):
    """The labels of the held-out images are made unlike all others: they must not show in the baseline."""
    run = finished(experiment(data_path=str(own), val_split=6, seed=2))
    held_out, store = hold_out(own, 6, 2), LabelStore(own / "train")
    for id in store.ids:
        value = 255 if id in held_out else 100
        write_heatmap(store.heatmap_path(id), np.full(store.heatmap(id).shape, value, np.uint8))
    table = store.table.assign(score=[0.0 if id in held_out else 0.5 for id in store.ids])
    table.reset_index().to_parquet(own / "train" / "manifest.parquet", index=False)
    here, test = (
        on.source for on in evaluation.trivial([unpredicted(run, own, name) for name in ("held_out", "test")])
    )
    assert here.ids == held_out and set(here.scores.values()) == {0.5}
    first, last = (test.heatmap(id) for id in (test.ids[0], test.ids[-1]))
    assert first is last and first.shape == (128, 128) and (first == 100).all()  # one copy, whatever the number
    everything = evaluation.trivial([unpredicted(run, own, "val")])[0].source
    assert everything.heatmap(everything.ids[0])[0, 0] == round((18 * 100 + 6 * 255) / 24)
    table.assign(labelled=False).reset_index().to_parquet(own / "train" / "manifest.parquet", index=False)
    with pytest.raises(InputError, match="no labels to average"):
        evaluation.trivial([unpredicted(run, own, "val")])


def test_a_run_that_held_nothing_out_is_told(run, own):
    with pytest.raises(InputError, match="trained on all of train, .*; name another split"):
        unpredicted(run, own, "held_out")


FOUND = {"split": "test", "threshold": 120, "min_area_ratio": 0.03, "figures": {"final_score": 0.75, "f1_score": 0.5}}


def test_evaluating_anything_else_leaves_what_was_measured(tmp_path):
    """Another split, other data under the same name, data without labels: each has a place of its own."""
    data = write_split(tmp_path / "data" / "test").parent
    write_split(tmp_path / "data" / "mine")
    write_split(tmp_path / "other" / "test", {name: CASES["missed"] for name in ("perfect", "x")})
    run = write_run(tmp_path / "run", data)
    test = open_run(run, "test")
    test.note_images()
    assert evaluation.keep(test, FOUND) == run / "evaluation.json"

    write_run(run, data, split="mine")
    other = RunOnSplit(run, "test", LabelStore(tmp_path / "other" / "test"), [])
    assert other.place.name == f"test-{other.images_digest}" != "test"
    shutil.copytree(run / "predictions" / "test", other.place)
    for on, figures in ((open_run(run, "mine"), {"final_score": 0.1, "f1_score": 0.0}), (other, None), (test, None)):
        evaluation.keep(on, {**FOUND, "split": on.split, "threshold": 90, "figures": figures})
    assert read_evaluation(run) == FOUND
    assert open_run(run, "mine").threshold == 90 and open_run(run, "mine").evaluation["figures"]["final_score"] == 0.1
    assert open_run(run, "test", tmp_path / "other").evaluation["figures"] is None
    assert open_run(run, "test", tmp_path / "other").verdicts_path != open_run(run, "test").verdicts_path

    better = {**FOUND, "figures": {"final_score": 0.8, "f1_score": 0.5}}
    evaluation.keep(test, better)  # the same images measured again
    assert read_evaluation(run) == better == open_run(run, "test").evaluation
    assert len(list((run / "predictions" / "test" / "heatmaps").iterdir())) == len(CASES)
