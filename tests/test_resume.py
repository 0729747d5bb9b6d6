"""Interrupted runs go on and end with the weights of an uninterrupted one, to the last bit."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import pytest
from test_runtime import TEARS
from watching import assert_identical, model_weights, watched

from lib.engine.checkpoints import latest_checkpoint
from lib.engine.run_state import RunState
from lib.engine.signals import Interrupted
from lib.engine.tracking import read_metrics
from lib.training import Run, train

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
    points = ["update 1", "update 2", "save 3", "prune 3", "update 6", "save 7", "update 11", "model", "finished"]
    for point in points:
        child = fork_server.start("killing", "train_until", [str(tmp_path / "config.yaml"), point], tmp_path / "log")
        assert child.wait() == -signal.SIGKILL, (point, child.log.read_text())
    log = (tmp_path / "log").read_text()
    assert "Going on from" in log and "not whole" not in log  # half a save is not even looked at
    train(config)
    assert_same_run(config.folder, whole)
    assert [path.name for path in (config.folder / "checkpoints").iterdir()] == ["step_00000011"]


def kill_at_random(start, config, rng, kills: int):
    """Kill trainings of this run `kills` times at random moments, then let it end; [(stage, while saving)].

    Three in four die some steps after they began, the others while they write a checkpoint.
    """
    seen = []
    while len(seen) < kills and not ended(config.folder):
        left, before = half_saved(config), len(printed_steps(config))
        child = start()
        if rng.random() < 0.75:
            wait_until(child, config, lambda goal: len(printed_steps(config)) >= goal, before + rng.randint(1, 7))
            time.sleep(rng.uniform(0, 0.2))
        else:
            wait_until(child, config, lambda left: half_saved(config) - left, left)
        if child.kill() == -signal.SIGKILL:
            newest = printed_steps(config)[before:][-1:]
            seen.append(("main" if newest and " main " in newest[0] else "warmup", bool(half_saved(config) - left)))
    if not ended(config.folder):
        assert start().wait() == 0
    return seen


def wait_until(child, config, happened, *arguments) -> None:
    child.wait_until(lambda: happened(*arguments) or ended(config.folder))


def half_saved(config) -> set:
    """What saves of checkpoints have not completed, with numbers that tell one from another."""
    parts = (config.folder / "checkpoints").glob("*.part")
    with contextlib.suppress(FileNotFoundError):
        return {(path, path.stat().st_ino) for path in parts}
    return set()


def printed_steps(config) -> list[str]:
    log = config.folder.parent / "log"
    return [line for line in log.read_text().splitlines() if line.startswith("step ")] if log.exists() else []


def ended(folder):
    return (folder / "finished.json").is_file()


def test_killed_at_random_moments(experiment, whole, fork_server, tmp_path):
    config = experiment(**RECIPE)
    config.save(tmp_path / "config.yaml")

    def start():
        return fork_server.start(
            "lib.training", "main", [[str(tmp_path / "config.yaml")]], config.folder.parent / "log"
        )

    config.folder.mkdir(parents=True)
    assert kill_at_random(start, config, random.Random(1), kills=3)
    assert_same_run(config.folder, whole)


class Command:
    """`python -m lib.training` as a user types it, with the methods of fork_server.Child."""

    def __init__(self, config_path, log):
        self.log = log
        command = [sys.executable, "-m", "lib.training", str(config_path)]
        with open(log, "a") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)

    def wait(self):
        return self.process.wait()

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        return self.process.wait()

    def wait_until(self, happened, seconds=120):
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline and self.process.poll() in (None, 0), self.log.read_text()
            time.sleep(0.002)


@pytest.mark.slow
def test_twenty_kills_of_the_real_command(micro_experiment, tmp_path, capsys):
    """As many runs as it takes to be killed twenty times, with a data worker; the figures are printed."""
    longer = {**RECIPE, "epoch": 6, "num_workers": 1}
    whole = train(micro_experiment(tmp_path / "whole", **longer))
    rng, seen, runs, began = random.Random(7), [], 0, time.monotonic()
    while len(seen) < 20:
        config = micro_experiment(tmp_path / f"killed_{runs}", **longer)
        config.folder.mkdir(parents=True)
        config.save(tmp_path / "config.yaml")
        start = partial(Command, tmp_path / "config.yaml", config.folder.parent / "log")
        seen += kill_at_random(start, config, rng, 20 - len(seen))
        assert_same_run(config.folder, whole)
        runs += 1
    stages = Counter(stage for stage, _ in seen)
    with capsys.disabled():
        print(
            f"\n{len(seen)} kills of {runs} runs of 27 steps: {stages['warmup']} in the warm-up, {stages['main']} in "
            f"the main stage, {sum(saving for _, saving in seen)} of them while saving; all ended bit-identical "
            f"({time.monotonic() - began:.0f} s)"
        )
    assert {"warmup", "main"} <= set(stages)


# Signals


def interrupted_at(monkeypatch, step: int, number: int):
    """The process sends itself the signal in the middle of this step."""
    update = Run._update

    def update_and_signal(run, *arguments):
        if run.state.step + 1 == step:
            os.kill(os.getpid(), number)
        return update(run, *arguments)

    monkeypatch.setattr(Run, "_update", update_and_signal)


@pytest.mark.parametrize(
    ("number", "step", "changes"),
    [
        (signal.SIGTERM, 2, {}),
        (signal.SIGINT, 6, {}),
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
    assert latest_checkpoint(config.folder / "checkpoints").name == f"step_{step:08d}"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(config)
    assert_same_run(config.folder, whole)


def test_a_signal_in_the_last_step_changes_nothing(experiment, whole, monkeypatch):
    config = experiment(**RECIPE)
    interrupted_at(monkeypatch, 11, signal.SIGTERM)
    assert_same_run(train(config), whole)


def test_the_command_tells_a_stop_by_a_sentence_and_its_exit_code(experiment, whole, fork_server, tmp_path):
    """The signal goes to the whole process group, as from a terminal or a scheduler: data workers must survive it."""
    config = experiment(**RECIPE, num_workers=2)
    config.save(tmp_path / "config.yaml")
    child = fork_server.start("lib.training", "main", [[str(tmp_path / "config.yaml")]], tmp_path / "log")
    child.wait_until(lambda: len(read_metrics(config.folder)) >= 2)
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait() == 130
    assert "and saved; the same command goes on from here." in child.log.read_text().splitlines()[-1]
    assert "Traceback" not in child.log.read_text()
    assert_same_run(train(config), whole)


# Checkpoints


@pytest.fixture(scope="module")
def unfinished(micro_experiment, tmp_path_factory):
    """A run killed when all steps were done and nothing was written but checkpoints 7 and 11."""
    config = micro_experiment(tmp_path_factory.mktemp("unfinished"), **RECIPE)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(RunState, "finish", lambda *_: (_ for _ in ()).throw(ConnectionError))
        train(config)
    assert [path.name for path in sorted((config.folder / "checkpoints").iterdir())] == [
        "step_00000007",
        "step_00000011",
    ]
    return config


@pytest.mark.parametrize("tear", [None, *TEARS])
def test_a_torn_checkpoint_costs_time_and_nothing_else(unfinished, whole, tmp_path, tear, micro_experiment):
    shutil.copytree(unfinished.runs, tmp_path / "runs")
    config = micro_experiment(tmp_path / "runs", **RECIPE)
    if tear:
        tear(config.folder / "checkpoints" / "step_00000011")
    with watched() as seen:
        train(config)
    assert len(seen["steps"]) == (4 if tear else 0)
    assert_same_run(config.folder, whole)


def test_a_lora_run_goes_on_too(experiment, monkeypatch):
    lora = {**RECIPE, "lora_rank": 2, "epoch": 1, "unfreeze_params": "layernorm_embedding"}
    whole = train(experiment(experiment_name="whole", **lora))
    config = experiment(**lora)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(config)
    checkpoint = latest_checkpoint(config.folder / "checkpoints")
    train(config)
    assert_same_run(config.folder, whole)
    assert checkpoint.name == "step_00000005"
