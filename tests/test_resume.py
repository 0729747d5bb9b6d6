"""Interrupted runs go on and end with the weights of an uninterrupted one, to the last bit."""

import json
import os
import shutil
import signal
import time
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from test_pseudo_labels import predictions_of
from watching import assert_identical, model_weights

from lib.data.dataset import training_data
from lib.errors import InputError
from lib.signals import Interrupted
from lib.stores import LabelStore, read_heatmap, write_heatmap
from lib.train import loop, read_metrics, train
from lib.train.__main__ import main
from lib.train.checkpoint import circumstances, latest_checkpoint
from lib.train.loop import Run

# Warm-up 3 steps, main 2 x 4 steps (7, 7, 7 and 3 images): an uneven end, averages, a best model.
RECIPE = {"batch_size": 7, "ema": True, "ema_decay": 0.9, "save_iter": 1, "val_iter": 1}


@pytest.fixture(scope="module")
def whole(micro_experiment, tmp_path_factory):
    """The folder of the uninterrupted run."""
    return train(micro_experiment(tmp_path_factory.mktemp("whole"), **RECIPE))


def assert_same_run(run, whole):
    """Model, best model and figures; the time they took is another one."""
    for name in ("model", "best"):
        assert_identical(model_weights(run, name), model_weights(whole, name))
    rows = [
        [{k: v for k, v in row.items() if k not in ("seconds", "left")} for row in read_metrics(folder)]
        for folder in (run, whole)
    ]
    assert rows[0] == rows[1]


def test_killed_at_every_kind_of_moment(experiment, whole, fork_server, tmp_path):
    config = experiment(**RECIPE)
    config.save(tmp_path / "config.yaml")
    points = ["update 2", "save 3", "prune 3", "evaluate 3", "evaluated 3", "update 6", "save 7", "update 11"]
    points += ["evaluated 11", "model", "finished"]
    for point in points:
        child = fork_server.start("killing", "train_until", [str(tmp_path / "config.yaml"), point], tmp_path / "log")
        assert child.wait() == -signal.SIGKILL, (point, child.log.read_text())
    log = (tmp_path / "log").read_text()
    assert "Going on from" in log and "not whole" not in log  # half a save is not even looked at
    train(config)
    assert_same_run(config.folder, whole)
    assert [path.name for path in (config.folder / "checkpoints").iterdir()] == ["step_00000011"]


def test_the_optimizer_goes_on_where_torch_keeps_its_state(experiment, whole, monkeypatch):
    """Accelerate would move the counters of Adam to the GPU, where each step has to wait for each of them."""
    config, update = experiment(**RECIPE), Run._update

    def stopped_at_six(run, *arguments):
        if run.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return update(run, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Run, "_update", stopped_at_six)
        train(config)
    monkeypatch.setattr("accelerate.optimizer.move_to_device", Mock(side_effect=AssertionError))
    train(config)
    assert_same_run(config.folder, whole)


def test_an_evaluation_that_fails_costs_no_training(experiment, whole, monkeypatch):
    config = experiment(**RECIPE)
    with monkeypatch.context() as broken:
        broken.setattr(loop, "validation_figures", Mock(side_effect=InputError("val/images/3.png is torn")))
        with pytest.raises(InputError, match="3.png is torn"):
            train(config)
    assert latest_checkpoint(config.folder).name == "step_00000003"
    train(config)
    assert_same_run(config.folder, whole)


def test_lora_and_accumulation_survive_kills_too(experiment, fork_server, tmp_path):
    """Warm-up 2 steps of 16 and 8 images, main 2 of 14 and 10; checkpoints hold adapters and heads only."""
    changes = {"lora_rank": 2, "epoch": 1, "unfreeze_params": "layernorm_embedding", "accumulate_step": 2}
    uninterrupted = train(experiment(experiment_name="whole", **{**RECIPE, **changes}))
    config = experiment(**{**RECIPE, **changes})
    config.save(tmp_path / "config.yaml")
    for point in ("save 2", "update 4", "model"):
        child = fork_server.start("killing", "train_until", [str(tmp_path / "config.yaml"), point], tmp_path / "log")
        assert child.wait() == -signal.SIGKILL, (point, child.log.read_text())
    assert "Going on from" in (tmp_path / "log").read_text()
    train(config)
    assert_same_run(config.folder, uninterrupted)


# Signals


def interrupted_at(monkeypatch, step: int, number: int):
    """The process sends itself the signal in the middle of this step."""
    update = Run._update

    def update_and_signal(run, *arguments):
        if run.step + 1 == step:
            os.kill(os.getpid(), number)
        return update(run, *arguments)

    monkeypatch.setattr(Run, "_update", update_and_signal)


@pytest.mark.parametrize(
    ("number", "step", "changes"),
    [
        (signal.SIGTERM, 2, {}),
        (signal.SIGTERM, 7, {}),  # at an epoch's end, which is evaluated first
        (signal.SIGINT, 5, {"num_workers": 2, "save_iter": -1}),
    ],
)
def test_a_signal_saves_within_the_epoch(experiment, whole, monkeypatch, number, step, changes):
    config = experiment(**{**RECIPE, **changes})
    with monkeypatch.context() as patch:
        interrupted_at(patch, step, number)
        with pytest.raises(Interrupted) as stopped:
            train(config)
    assert str(stopped.value).startswith(f"{signal.Signals(number).name}: stopped at step {step} of 11 and saved")
    assert latest_checkpoint(config.folder).name == f"step_{step:08d}"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(config)
    assert_same_run(config.folder, whole)


@pytest.mark.parametrize(
    ("number", "place"),
    [(signal.SIGTERM, "lib.train.loop.training_data"), (signal.SIGINT, "lib.train.loop.load_weights")],
)
def test_a_signal_while_loading_ends_at_once(
    unfinished, whole, micro_experiment, monkeypatch, tmp_path, capsys, number, place
):
    shutil.copytree(unfinished.runs, tmp_path / "runs")
    config = micro_experiment(tmp_path / "runs", **RECIPE)
    config.save(tmp_path / "config.yaml")
    before = signal.getsignal(signal.SIGTERM)

    def loading(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(5)
        pytest.fail("went on loading")

    with monkeypatch.context() as patch:
        patch.setattr(place, loading)
        assert main([str(tmp_path / "config.yaml")]) == 130
    assert "Stopped; the same command goes on" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before
    assert_same_run(train(config), whole)


def test_a_signal_in_the_last_step_changes_nothing(experiment, whole, monkeypatch):
    config = experiment(**RECIPE)
    interrupted_at(monkeypatch, 11, signal.SIGTERM)
    assert_same_run(train(config), whole)


def test_the_command_tells_a_stop_by_a_sentence_and_its_exit_code(experiment, whole, fork_server, tmp_path):
    """The signal goes to the whole process group, as from a terminal or a scheduler: data workers must survive it."""
    config = experiment(**RECIPE, num_workers=2)
    config.save(tmp_path / "config.yaml")
    child = fork_server.start("lib.train.__main__", "main", [[str(tmp_path / "config.yaml")]], tmp_path / "log")
    child.wait_until(lambda: len(read_metrics(config.folder)) >= 2)
    os.killpg(child.pid, signal.SIGTERM)
    assert child.wait() == 130
    assert "and saved; the same command goes on from here." in child.log.read_text().splitlines()[-1]
    assert "Traceback" not in child.log.read_text()
    assert_same_run(train(config), whole)


# Checkpoints


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "optimizer.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(unfinished, whole, tmp_path, micro_experiment, name):
    shutil.copytree(unfinished.runs, tmp_path / "runs")
    config = micro_experiment(tmp_path / "runs", **RECIPE)
    newest = config.folder / "checkpoints" / "step_00000011"
    shutil.copytree(config.folder / "checkpoints" / "step_00000007", newest, dirs_exist_ok=True)
    (newest / name).write_bytes((newest / name).read_bytes()[:-4])
    with pytest.raises(InputError, match=f"step_00000011/{name} cannot be read .* delete .*step_00000011 to fall back"):
        train(config)
    shutil.rmtree(newest)
    assert_same_run(train(config), whole)


@pytest.fixture(scope="module")
def unfinished(micro_experiment, tmp_path_factory):
    """A run killed when all steps were done and nothing was written but checkpoints 7 and 11."""
    config = micro_experiment(tmp_path_factory.mktemp("unfinished"), **RECIPE)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(Run, "_finish", lambda *_: (_ for _ in ()).throw(ConnectionError))
        train(config)
    assert [path.name for path in sorted((config.folder / "checkpoints").iterdir())] == [
        "step_00000007",
        "step_00000011",
    ]
    return config


def noted(config, change) -> None:
    """Change what the newest checkpoint notes."""
    path = latest_checkpoint(config.folder) / "state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


def as_an_older_version(state: dict) -> None:
    for name in ("images", "data", "contents", "precision", "base"):
        del state[name]


def fewer(manifest: pd.DataFrame) -> pd.DataFrame:
    return manifest.iloc[:8]


def reordered(manifest: pd.DataFrame) -> pd.DataFrame:
    return manifest.iloc[::-1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (fewer, "step_00000005 cannot be gone on from: 24 training images then, 8 now; restore the data, or give"),
        (reordered, "the 24 training images have other ids, prompts or scores now, or another order; restore the data"),
    ],
)
def test_other_data_are_refused_until_they_are_restored(
    experiment, whole, prepared, monkeypatch, tmp_path, change, told
):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)  # as deep as before: images are named from there
    config, manifest = experiment(**RECIPE, data_path=str(tmp_path)), tmp_path / "train/manifest.parquet"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(config)
    change(pd.read_parquet(manifest)).to_parquet(manifest, index=False)
    with pytest.raises(InputError, match=told):
        train(config)
    shutil.copy(prepared / "train/manifest.parquet", manifest)
    assert_same_run(train(config), whole)


def test_a_checkpoint_notes_the_images_that_train_in_their_order(experiment, tmp_path):
    data = training_data(experiment(val_split=4))
    assert circumstances(data, "no")["images"] == 20
    notes = {circumstances(training_data(experiment(val_split=4, seed=seed)), "no")["data"] for seed in (1, 1, 2)}
    assert len(notes) == 2  # another seed holds out other images
    entry = data.entries[0]
    moved = shutil.copy(entry.image, tmp_path)
    data.entries[0] = entry._replace(id=np.str_(entry.id), score=np.float64(entry.score), image=moved)
    assert circumstances(data, "no") == circumstances(training_data(experiment(val_split=4)), "no")


def test_a_checkpoint_notes_files_by_their_size_and_what_counts_of_a_prediction(experiment, prepared, tmp_path):
    test = LabelStore(prepared / "test")
    folder = predictions_of(tmp_path / "before", "test", test.ids[:3])

    def noted_now():
        return circumstances(training_data(experiment(pseudo_labels=str(folder))), "no")

    before = noted_now()
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "before" / "evaluation.json").write_text(json.dumps({"threshold": 40}))
    assert {name for name, value in noted_now().items() if value != before[name]} == {"contents"}
    predictions_of(tmp_path / "before", "test", test.ids[:3])
    assert noted_now() == before
    heatmap = folder / "heatmaps" / f"{test.ids[0]}.png"
    write_heatmap(heatmap, np.full((16, 16), 255, np.uint8))
    assert {name for name, value in noted_now().items() if value != before[name]} == {"contents"}
    shutil.copy(tmp_path / "copy" / "heatmaps" / heatmap.name, heatmap)
    assert noted_now() == before
    heatmap.unlink()  # told when it is to be read
    assert noted_now()["contents"] != before["contents"]


def grown(data) -> None:
    """The label of one image is another one, under the same names."""
    heatmap = sorted((data / "train" / "heatmaps").iterdir())[0]
    write_heatmap(heatmap, 255 - read_heatmap(heatmap) // 3)


def test_another_label_is_refused_and_moved_data_go_on(experiment, whole, prepared, monkeypatch, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    absolute_images(prepared, tmp_path / "data")
    config = experiment(**RECIPE, data_path=str(tmp_path / "data"))
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(config)
    shutil.copytree(tmp_path / "data", tmp_path / "further" / "away")
    grown(tmp_path / "data")
    with pytest.raises(InputError, match="files of the 24 training images have other sizes now"):
        train(config)
    moved = experiment(**RECIPE, data_path=str(tmp_path / "further" / "away"))
    assert_same_run(train(moved), whole)
    with pytest.raises(InputError, match="data_path: .* then, .* now"):  # nothing tells of a model that it is the same
        train(config)


def absolute_images(prepared, copy) -> None:
    """Images are named from where the manifest lies."""
    for split in ("train", "val", "test"):
        path = copy / split / "manifest.parquet"
        table = pd.read_parquet(path)
        table["image"] = [str((prepared / split / image).resolve()) for image in table["image"]]
        table.to_parquet(path, index=False)


def test_another_base_of_adapters_is_refused(experiment, micro_checkpoint, monkeypatch, tmp_path):
    shutil.copytree(micro_checkpoint, tmp_path / "base")
    lora = {**RECIPE, "lora_rank": 2, "epoch": 1, "checkpoint": str(tmp_path / "base")}
    uninterrupted, config = train(experiment(experiment_name="whole", **lora)), experiment(**lora)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(config)
    weights = tmp_path / "base" / "model.safetensors"
    restored = weights.read_bytes()
    save_file({name: value * 1.5 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(InputError, match="frozen weights .* are others now; restore what checkpoint: .*base was"):
        train(config)
    weights.write_bytes(restored)
    assert_same_run(train(config), uninterrupted)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.update(precision="bf16"), "bf16 then, fp32 now; .* or give another experiment_name"),
        (lambda state: (as_an_older_version(state), state.update(scaler={"scale": 65536.0})), "fp16 then, fp32 now"),
    ],
    ids=["bf16", "an older version with a loss scaler"],
)
def test_another_precision_is_refused(unfinished, tmp_path, micro_experiment, change, told):
    shutil.copytree(unfinished.runs, tmp_path / "runs")
    config = micro_experiment(tmp_path / "runs", **RECIPE)
    noted(config, change)
    with pytest.raises(InputError, match=told):
        train(config)
    assert latest_checkpoint(config.folder).name == "step_00000011"


def test_a_checkpoint_of_an_older_version_goes_on(unfinished, whole, tmp_path, micro_experiment):
    shutil.copytree(unfinished.runs, tmp_path / "runs")
    config = micro_experiment(tmp_path / "runs", **RECIPE)
    noted(config, as_an_older_version)
    assert_same_run(train(config), whole)
