"""Interrupted runs go on and end with the weights of an uninterrupted one, to the last bit."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from unittest.mock import Mock

import pandas as pd
import pytest
from watching import assert_identical, model_weights, signal_in_step

from lib.config import Experiment
from lib.errors import InputError
from lib.model import DistortionDetector
from lib.signals import Interrupted, StopRequest
from lib.train import read_metrics, train
from lib.train.__main__ import main
from lib.train.checkpoint import latest_checkpoint, opened_folder, read_state
from lib.train.loop import Run

# Warm-up 3 steps, main 2 x 4 steps (7, 7, 7 and 3 images): an uneven end, averages, a best model.
RECIPE = {"batch_size": 7, "ema": True, "ema_decay": 0.9, "save_iter": 1, "val_iter": 1}
# Warm-up 2 steps of 16 and 8 images, main 2 of 14 and 10; checkpoints hold adapters and heads only.
LORA = RECIPE | {
    "lora_rank": 2, "epoch": 1, "unfreeze_params": "layernorm_embedding", "accumulate_step": 2, "carry_optimizer": True,
    "warmup_encoder": "train",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(micro_experiment, tmp_path_factory):
    """The folder of the uninterrupted run."""
    return train(micro_experiment(tmp_path_factory.mktemp("whole"), **RECIPE))


@pytest.fixture(scope="module")
def killed_at_the_end(micro_experiment, tmp_path_factory):
    """The folder of runs with one that was killed when all steps were done and only checkpoints 7 and 11 written."""
    config = micro_experiment(tmp_path_factory.mktemp("unfinished"), **RECIPE)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(Run, "_finish", Mock(side_effect=ConnectionError))
        train(config)
    assert sorted(path.name for path in (config.folder / "checkpoints").iterdir()) == ["step_00000007", "step_00000011"]
    return config.runs


@pytest.fixture
def unfinished(killed_at_the_end, micro_experiment, tmp_path):
    """The parameters of a copy of that run."""
    shutil.copytree(killed_at_the_end, tmp_path / "runs")
    return micro_experiment(tmp_path / "runs", **RECIPE)


def assert_same_run(run, whole):
    """Model and best model to the last bit, and the figures; the time they took is another one.

    Figures of an evaluation need not agree to the last digit: sums of the CPU's linear algebra depend on how their
    vectors happen to lie in memory.
    """
    for name in ("model", "best"):
        assert_identical(model_weights(run, name), model_weights(whole, name))
    for row, expected in zip(read_metrics(run), read_metrics(whole), strict=True):
        assert row.keys() == expected.keys()
        for name in row.keys() - {"seconds", "left"}:
            figure = pytest.approx(expected[name], rel=1e-6) if name.startswith("val_") else expected[name]
            assert row[name] == figure, name


@pytest.mark.parametrize(
    ("recipe", "points"),
    [
        (RECIPE, ["save 3", "prune 3", "evaluate 3", "evaluated 3", "update 6", "save 7", "model", "finished"]),
        # The first is just after the checkpoint at the warm-up's end, whose optimizer goes on.
        (LORA, ["update 3", "save 4"]),
    ],
    ids=["full", "lora"],
)  # fmt: skip
def test_killed_at_every_kind_of_moment(experiment, whole, fork_server, tmp_path, recipe, points):
    expected = whole if recipe is RECIPE else train(experiment(experiment_name="whole", **recipe))
    config = experiment(**recipe)
    config.save(tmp_path / "config.yaml")
    for point in points:
        child = fork_server.start("killing", "train_until", [str(tmp_path / "config.yaml"), point], tmp_path / "log")
        assert child.wait() == -signal.SIGKILL, (point, child.log.read_text())
    log = (tmp_path / "log").read_text()
    assert "Going on from" in log and "not whole" not in log  # half a save is not even looked at
    train(config)
    assert_same_run(config.folder, expected)
    [last] = (config.folder / "checkpoints").iterdir()
    assert not list(config.folder.rglob("*.part"))
    lora = "lora_rank" in recipe  # then the base is not saved, and must be what it was
    assert read_state(last)["base"] == (DistortionDetector.from_checkpoint(config).base["sha256"][:16] if lora else "")


def test_a_signal_saves_within_the_epoch(experiment, whole, monkeypatch):
    # Where torch keeps the optimizer's state: Accelerate would move counters to a GPU, where every step reads them.
    monkeypatch.setattr("accelerate.optimizer.move_to_device", Mock(side_effect=AssertionError))
    config = experiment(**RECIPE, num_workers=2)
    with signal_in_step(5, signal.SIGUSR1), pytest.raises(Interrupted, match="^SIGUSR1: stopped at step 5 of 11 and s"):
        train(config)
    assert latest_checkpoint(config.folder).name == "step_00000005"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with signal_in_step(11):  # the last step: nothing is left to be stopped
        assert_same_run(train(config), whole)


def test_a_training_that_nobody_reads_any_more_saves_and_stops(experiment, whole, monkeypatch):
    config, output = experiment(**RECIPE), Mock()
    output.flush.side_effect = [None, None, BrokenPipeError]  # as a pipe does whose other end was closed in step 2
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="SIGTERM: stopped at step 3 of 11 and saved"):
        patch.setattr("sys.stdout", output)
        train(config)
    assert_same_run(train(config), whole)


def test_a_stop_signal_is_remembered_and_a_repeated_one_is_the_same_request(monkeypatch):
    before, calls = signal.getsignal(signal.SIGTERM), []
    with StopRequest(calls.append) as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun sends it on although the process group had it already
        time.sleep(0.01)
        assert stop and stop.name == "SIGTERM" and calls == [signal.SIGTERM]
        monkeypatch.setattr("lib.signals.SAME_REQUEST", 0.0)
        with pytest.raises(KeyboardInterrupt):  # the user insists
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_while_loading_ends_at_once(experiment, monkeypatch, tmp_path, capsys):
    def loading(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        pytest.fail("went on loading")

    experiment().save(tmp_path / "config.yaml")
    monkeypatch.setattr("lib.train.loop.training_data", loading)
    assert main([str(tmp_path / "config.yaml")]) == 130
    assert "Stopped; the same command goes on" in capsys.readouterr().out


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


# Damage and other circumstances


def test_a_damaged_checkpoint_is_named_before_it_is_used_and_the_one_before_goes_on(unfinished, whole):
    newest = latest_checkpoint(unfinished.folder)
    older = newest.with_name("step_00000007")
    other = (older / "model.safetensors").read_bytes()
    for name, content in {"state.json": b"{", "model.safetensors": other, "ema.safetensors": b""}.items():
        kept = (newest / name).read_bytes()
        (newest / name).write_bytes(content)
        told = rf"(?i)step_00000011/{name} .* delete .*step_00000011 to go on from the checkpoint before it"
        with pytest.raises(InputError, match=told):
            train(unfinished)
        (newest / name).write_bytes(kept)
    (newest / "state.json").write_bytes((older / "state.json").read_bytes())
    with pytest.raises(InputError, match="step_00000011/.*safetensors is missing or not what was saved there"):
        train(unfinished)
    shutil.rmtree(newest)
    assert_same_run(train(unfinished), whole)


def test_other_circumstances_are_refused_and_an_older_version_goes_on(unfinished, whole):
    (unfinished.folder / "finished.json").write_text('{"steps": 11, "seconds": 1, "images": 24}')
    with pytest.raises(InputError, match=r"holds no detector\.json; copy the run again, or delete .*finished\.json"):
        train(unfinished)
    (unfinished.folder / "finished.json").unlink()
    path = latest_checkpoint(unfinished.folder) / "state.json"
    state = json.loads(path.read_text())
    for changed, told in [
        ({"images": 8}, r"the number of training images is another one \(8 then, 24 now\); restore it, or give"),
        ({"data": "0"}, "the training images have other ids, prompts or scores, or another order"),
        ({"precision": "bf16"}, r"mixed_precision gives another precision .* \(bf16 then, no now\)"),
        ({"base": "0"}, "the frozen weights of the encoder are others"),
    ]:
        path.write_text(json.dumps(state | changed))
        with pytest.raises(InputError, match=f"step_00000011 cannot be gone on from: {told}"):
            train(unfinished)
    path.write_text(json.dumps({"step": 11, "scaler": None, "contents": "0"}))
    assert_same_run(train(unfinished), whole)


def test_data_may_be_moved_until_the_run_has_ended(unfinished, whole, prepared, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(prepared / split, tmp_path / "moved" / split)
        table = pd.read_parquet(prepared / split / "manifest.parquet")  # images are named from where it lies
        table["image"] = [str((prepared / split / image).resolve()) for image in table["image"]]
        table.to_parquet(tmp_path / "moved" / split / "manifest.parquet", index=False)
    moved, manifest = replace(unfinished, data_path=str(tmp_path / "moved")), tmp_path / "moved/train/manifest.parquet"
    table = pd.read_parquet(manifest)
    for changed, told in ((table.iloc[::-1], "or another order"), (table.iloc[:8], r"24 then, 8 now")):
        changed.to_parquet(manifest, index=False)
        with pytest.raises(InputError, match=told):
            train(moved)
    table.to_parquet(manifest, index=False)
    assert_same_run(train(moved), whole)
    with pytest.raises(InputError, match="data_path: .* then, .* now"):
        train(unfinished)


@pytest.mark.parametrize("kept", ["finished.json", "metrics.jsonl", "checkpoints/step_00000003/state.json"])
def test_a_run_with_something_to_lose_keeps_its_parameters(experiment, kept):
    with opened_folder(experiment()) as folder:
        pass
    (folder / kept).parent.mkdir(parents=True, exist_ok=True)
    (folder / kept).write_text("{}\n")
    lines = (folder / "config.yaml").read_text().splitlines(True)  # a parameter came since, another went
    old = "".join(line for line in lines if "ema_decay" not in line) + "accelerate_config: fsdp.yaml\n"
    (folder / "config.yaml").write_text(old)
    told = r"begun with other parameters \(lr: 0.001 then, 0.01 now; ema_decay: 0.999 then, 0.5 now\); restore them"
    with pytest.raises(InputError, match=told), opened_folder(experiment(lr=1e-2, ema_decay=0.5)):
        pass
    assert Experiment.from_yaml(folder / "config.yaml") == experiment()
    with opened_folder(experiment(num_workers=1, log_iter=7, nonfinite="skip")):
        assert Experiment.from_yaml(folder / "config.yaml").log_iter == 7


def test_two_trainings_into_one_folder_are_refused_and_a_killed_one_holds_nothing(experiment, fork_server, tmp_path):
    config = experiment()
    config.save(tmp_path / "config.yaml")
    holder = fork_server.start("killing", "hold", [str(tmp_path / "config.yaml")], tmp_path / "log")
    holder.wait_until(lambda: (config.folder / "held").exists())
    with pytest.raises(InputError, match="is being trained by another process"), opened_folder(experiment(lr=1e-2)):
        pass
    holder.kill()
    with opened_folder(config) as folder:
        assert Experiment.from_yaml(folder / "config.yaml") == config
