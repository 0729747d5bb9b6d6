"""What notebook 3 reports of a run: where the threshold comes from, baselines, undefined figures, keys."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest

from lib.data.held_out import hold_out
from lib.data.prepare import prepare
from lib.errors import InputError
from lib.evaluate import evaluation, judging
from lib.evaluate.evaluation import Evaluation, folder_megabytes, write_evaluation
from lib.evaluate.judging import Judged
from lib.metrics import FIGURES, Heatmaps, evaluate
from lib.metrics.baseline import mean_label
from lib.metrics.setting import Setting
from lib.model.detector import DistortionDetector
from lib.predict.splits import Split, calibration_split, run_config
from lib.reports import evaluation as evaluation_report
from lib.stores import LabelStore, write_heatmap


@pytest.fixture
def own(raw, tmp_path):
    """Prepared data to be changed."""
    prepare(raw, tmp_path / "data", workers=1)
    return tmp_path / "data"


@pytest.fixture
def run(experiment, own):
    """A run as training leaves it, without the training."""
    return finished(experiment(data_path=str(own)))


def finished(config):
    config.save(config.folder / "config.yaml")
    DistortionDetector.from_checkpoint(config).save_pretrained(config.folder / "model")
    facts = {"seconds": 12.5, "trained_share_of_encoder": 1.0, "images": 24}
    (config.folder / "finished.json").write_text(json.dumps(facts))
    return config.folder


def forget_labels(split):
    table = pd.read_parquet(split / "manifest.parquet").assign(labelled=False, score=math.nan, mos=math.nan)
    table.to_parquet(split / "manifest.parquet", index=False)


def painted(store: LabelStore, true: int, false: int) -> Heatmaps:
    """Every true region at `true`, and a false region in a sound corner of each image at `false`."""
    heatmaps = {}
    for id in store.ids:
        label = store.heatmap(id)
        heatmap = np.where(label > 0, true, 0).astype(np.uint8)
        corner = heatmap[: len(label) // 4, : label.shape[1] // 4]
        corner[label[: len(label) // 4, : label.shape[1] // 4] == 0] = false
        heatmaps[id] = heatmap
    return Heatmaps(heatmaps, store.table["score"].to_dict())


def test_the_threshold_is_chosen_on_one_split_and_applied_to_the_other(run, own):
    one = Evaluation(run, "test")
    # On val the best thresholds lie in 40..99, on test in 150..199: its own best must not be found.
    one.predictions = {
        "val": painted(LabelStore(own / "val"), 100, 40),
        "test": painted(LabelStore(own / "test"), 200, 150),
    }
    why = one.judge(step=5)
    assert one.setting.threshold == 40 and "Threshold 40" in why and "on val; test had no say in it" in why
    expected = evaluate(one.predictions["test"], LabelStore(own / "test"), 40)
    figures = one.judged.figures()
    assert {name: figures[name] for name in FIGURES} == pytest.approx(
        {name: expected[name] for name in FIGURES}, nan_ok=True
    )
    best = one.judged.curve.set_index("threshold")["final_score"]
    assert best[150] > figures["final_score"] and best[150] == best.max()


def test_a_threshold_by_hand_and_without_labels(run, own):
    one = Evaluation(run, "test")
    one.predictions = {name: painted(LabelStore(own / name), 100, 40) for name in ("val", "test")}
    assert "set by hand" in one.judge(threshold=33) and one.setting.threshold == 33
    assert one.judged.figures(33)["final_score"] > 0
    forget_labels(own / "val")
    assert Evaluation(run, "test").calibration is None
    two = Evaluation(run, "test")
    two.predictions = one.predictions
    assert "no labels" in two.judge() and two.setting.threshold == 90


def test_choosing_and_reporting_on_one_split_is_said(run, own):
    one = Evaluation(run, "val")
    one.predictions = {"val": painted(LabelStore(own / "val"), 100, 40)}
    why = one.judge()
    assert "had no say" not in why and "optimistic" in why


def test_evaluation_from_end_to_end(run):
    one = Evaluation(run, "test", batch_size=8)
    assert one.predict().keys() == {"val", "test"}
    assert (run / "predictions" / "test" / "scores.parquet").is_file()
    why = one.judge(step=25)
    summary = one.summarise(resamples=20)
    path = write_evaluation(run, summary)
    read = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert read == summary
    assert set(read) == {
        "data_path", "split", "threshold", "min_area_ratio", "smoothing", "chosen", "n_images", "figures", "intervals",
        "trivial", "before", "by_domain", "train",
    }  # fmt: skip
    assert read["chosen"] == why
    assert read["data_path"] == run_config(run).data_path
    assert (read["split"], read["n_images"]) == ("test", 8) and read["threshold"] in one.grid.thresholds
    for name in ("figures", "trivial", "before"):
        assert set(FIGURES) <= set(read[name]), name
    measured = [read, read["trivial"], read["before"], *read["by_domain"].values()]
    assert all(set(part["intervals"]) == set(FIGURES) for part in measured)
    assert read["train"].items() >= {"seconds": 12.5, "trained_share_of_encoder": 1.0}.items()
    assert read["train"]["run_megabytes"] == pytest.approx(folder_megabytes(run), abs=0.1)
    # Constant scores have no correlation: null, and 0 in the final score.
    trivial = read["trivial"]
    assert trivial["plcc"] is None and trivial["srcc"] is None
    assert trivial["final_score"] == pytest.approx(0.7 * trivial["f1_score"])
    assert sum(group["n_images"] for group in read["by_domain"].values()) == 8


def test_before_fine_tuning_is_the_start_of_the_same_run(run, experiment, own):
    one = Evaluation(run, "test")
    one.predict()
    one.judge(step=50)
    summary = one.summarise(resamples=5)
    # This run never trained, so nothing changed since.
    assert summary["before"]["threshold"] == summary["threshold"]
    assert summary["before"]["final_score"] == pytest.approx(summary["figures"]["final_score"])
    ahead = summary["before"]["ahead"]
    assert [ahead["difference"], ahead["low"], ahead["high"]] == pytest.approx([0, 0, 0], abs=1e-6)
    says = evaluation_report.figures_table(one, summary)[1]
    assert "Difference to the detector before fine-tuning: +0.000 (+0.000 to +0.000), which may be chance." in says
    assert one.summarise(before=False, resamples=5)["before"] is None


def test_a_run_is_told_to_be_ahead_of_the_trivial_baseline(run, own):
    one = Evaluation(run, "test")
    one.predictions = {name: painted(LabelStore(own / name), 200, 0) for name in ("val", "test")}
    one.judge(step=50)
    summary = one.summarise(before=False, resamples=50)
    ahead, trivial = summary["trivial"]["ahead"], summary["trivial"]
    assert ahead["difference"] == pytest.approx(summary["figures"]["final_score"] - trivial["final_score"])
    assert 0 < ahead["low"] <= ahead["difference"] <= ahead["high"] and ahead["p"] == pytest.approx(2 / 51)
    table, says = evaluation_report.figures_table(one, summary)
    assert f"Difference to the trivial baseline: {ahead['difference']:+.3f} ({ahead['low']:+.3f} to" in says
    assert "chance" not in says and "<small>" in table.data.loc["trivial baseline", "F1"]
    table, says = evaluation_report.domain_table(summary)
    shown, shifted = (summary["by_domain"][name] for name in ("shown", "shifted"))
    assert table.data["F1"].str.contains("<small>").tolist() == [False, True]  # of two images there is no interval
    low, high = shown["intervals"]["final_score"]
    assert f"{shown['final_score']:.3f} ({low:.3f} to {high:.3f}) on shown" in says
    assert f"{shifted['final_score']:.3f} (too few images for an interval) on shifted" in says


def test_a_split_of_few_images_has_no_intervals(run, own):
    table = pd.read_parquet(own / "test" / "manifest.parquet")
    table.head(3).assign(domain=["shown", "", None]).to_parquet(own / "test" / "manifest.parquet")
    one = Evaluation(run, "test")
    one.predictions = {name: painted(LabelStore(own / name), 200, 0) for name in ("val", "test")}
    one.judge(step=50)
    summary = one.summarise(before=False, resamples=5)
    says = evaluation_report.figures_table(one, summary)[1]
    assert "(too few images for an interval)." in says and "nan" not in says and "None" not in says
    assert "Difference to the trivial baseline: +" in says and "; too few images for an interval." in says
    assert {name: figures["n_images"] for name, figures in summary["by_domain"].items()} == {"shown": 1, "unknown": 2}


def test_the_smallest_area_is_chosen_on_the_calibration_split_too(run, own):
    one = Evaluation(run, "test")
    speckled = {}
    for name in ("val", "test"):
        store = LabelStore(own / name)
        speckled[name] = painted(store, 200, 0)
        for heatmap in speckled[name].heatmaps.values():
            # Specks of 3 x 3 of 64 x 64 pixels cover 0.2 % of the frame: more than the scorer drops by itself.
            heatmap[4:7, 4:7] = heatmap[4:7, 56:59] = 200
    one.predictions = speckled
    one.judge(step=50)
    plain = one.judged.figures()["f1_score"]
    assert "regions above 1.00%" in one.judge(step=50, min_areas=(0.0006, 0.01))
    assert one.setting.min_area == 0.01 and one.judged.figures()["f1_score"] > plain
    expected = evaluate(speckled["test"], LabelStore(own / "test"), one.setting.threshold, min_area_ratio=0.01)
    assert one.judged.figures()["f1_score"] == pytest.approx(expected["f1_score"])


def test_a_split_without_labels_is_only_predicted(run, own):
    forget_labels(own / "test")
    one = Evaluation(run, "test")
    one.predict()
    one.judge(step=50)
    summary = one.summarise(resamples=5)
    assert summary["figures"] is summary["intervals"] is summary["trivial"] is summary["before"] is None
    assert summary["by_domain"] == {} and summary["n_images"] == 8
    json.dumps(summary, allow_nan=False)


def test_calibration_falls_back_to_what_was_held_out(experiment, own):
    run = finished(experiment(data_path=str(own), val_split=6, seed=2))
    assert calibration_split([run], own, "test").name == "val"
    forget_labels(own / "val")
    split = calibration_split([run], own, "test")
    assert split.name == "held_out" and split.labelled == hold_out(own, 6, 2)
    shutil.rmtree(own / "val")
    one = Evaluation(run, "test")
    one.predict()
    assert one.predictions["held_out"].ids == hold_out(own, 6, 2)
    assert "held_out" in one.judge(step=50)
    assert one.judged_on.ids == hold_out(own, 6, 2)


def test_the_trivial_baseline_learns_without_the_images_that_are_held_out(experiment, own):
    """The labels of the held-out images are made unlike all others: they must not show in the baseline."""
    run = finished(experiment(data_path=str(own), val_split=6, seed=2))
    held_out, store = hold_out(own, 6, 2), LabelStore(own / "train")
    for id in held_out:
        write_heatmap(store.heatmap_path(id), np.full(store.heatmap(id).shape, 255, np.uint8))
    trained = store.table.drop(index=held_out)
    table = store.table.assign(score=store.table["score"].where(~store.table.index.isin(held_out), 0.0))
    table.reset_index().to_parquet(own / "train" / "manifest.parquet", index=False)
    for splits in ([Split(run, own, "held_out"), Split(run, own, "test")], [Split(run, own, "held_out")]):
        found = judging.trivial(splits)["held_out"]
        assert found.score == pytest.approx(trained["score"].mean())
        assert found.heatmap("any").tolist() == mean_label(store, without=held_out).round().tolist()
    everything = judging.trivial([Split(run, own, "val")])["val"]
    assert everything.score == pytest.approx(table["score"].mean())


def test_the_threshold_is_chosen_on_another_split_than_the_reported_one(experiment, own):
    run = finished(experiment(data_path=str(own), val_split=6, seed=2))
    chosen = {name: calibration_split([run], own, name).name for name in ("test", "val", "held_out")}
    assert chosen == {"test": "val", "val": "held_out", "held_out": "val"}
    assert calibration_split([run], own, "val", "val").name == "val"  # by wish
    one = Evaluation(run, "val")
    one.predictions = {split.name: painted(split.store, 100, 40) for split in one.pair}
    assert "settings on held_out; val had no say in it" in one.judge()
    forget_labels(own / "val")
    assert calibration_split([run], own, "held_out").name == "held_out"
    assert calibration_split([run], own, "val").name == "held_out"


def test_runs_of_an_ensemble_choose_on_what_all_held_out(experiment, own):
    options = {"data_path": str(own), "val_split": 6}
    first, same, other = (
        finished(experiment(experiment_name=name, seed=seed, **options))
        for name, seed in (("a", 2), ("b", 2), ("c", 3))
    )
    without = finished(experiment(experiment_name="d", data_path=str(own)))
    assert calibration_split([first, same], own, "val").name == "held_out"
    # Another run has trained on some of them.
    assert calibration_split([first, other], own, "val").name == "val"
    assert calibration_split([first, without], own, "val").name == "val"
    forget_labels(own / "val")
    assert calibration_split([first, other], own, "test") is None


def test_wishes_that_cannot_be_met(run, own, tmp_path):
    with pytest.raises(InputError, match="trained on all of train, .*; name another split"):
        Split(run, own, "held_out")
    with pytest.raises(InputError, match="none holds no manifest.parquet"):
        Evaluation(run, "none")
    forget_labels(own / "val")
    with pytest.raises(InputError, match="val has no labels to choose a threshold on"):
        Evaluation(run, "test", calibration="val")
    with pytest.raises(InputError, match="nowhere.*holds no config.yaml; .*2_train.ipynb"):
        Evaluation(tmp_path / "nowhere", "test")
    (run / "finished.json").unlink()
    with pytest.raises(InputError, match="its training has not ended"):
        evaluation.training_facts(run)


def test_groups_are_judged_apart(run, own):
    split = Split(run, own, "test")
    predictions = painted(split.store, 200, 0)
    judged = Judged(predictions, split, Setting(90))
    groups = judged.by_group("domain", resamples=5)
    table = split.store.table
    assert set(groups) == set(table["domain"].unique())
    for value, figures in groups.items():
        ids = list(table.index[table["domain"] == value])
        expected = evaluate(predictions, split.store, 90, ids=ids)
        assert figures["n_images"] == len(ids) and figures["f1_score"] == pytest.approx(
            expected["f1_score"], nan_ok=True
        )
    assert judged.by_group("no such column", resamples=5) == {}


def test_undefined_figures_become_null():
    value = {"a": np.float64("nan"), "b": (1, math.inf), "c": [{"d": np.int64(3)}], "e": "nan", "f": None, "g": True}
    assert evaluation._without_nan(value) == {
        "a": None,
        "b": [1, None],
        "c": [{"d": 3}],
        "e": "nan",
        "f": None,
        "g": True,
    }


def test_the_size_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"0" * 1500)
    (tmp_path / "y").write_bytes(b"0" * 500)
    assert folder_megabytes(tmp_path) == pytest.approx(0.002)
