"""Reporting to Weights & Biases, on a stand-in for the package that notes every call."""

import math
import os
import signal
import sys
from types import SimpleNamespace

import pytest

from lib.errors import InputError
from lib.train.loop import train
from lib.train.signals import Interrupted
from lib.train.tracking import Tracker, read_metrics


class CommError(Exception):
    pass


class AuthenticationError(CommError):
    pass


class UsageError(Exception):
    pass


class FakeRun:
    def __init__(self, begun: dict):
        self.begun, self.rows, self.axes, self.ended = begun, [], [], []
        self.breaks = self.breaks_at_the_end = None

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, row):
        if self.breaks:
            raise self.breaks
        self.rows.append(row)

    def finish(self, exit_code):
        self.ended.append(exit_code)
        if self.breaks_at_the_end:
            raise self.breaks_at_the_end


class FakeWandb(SimpleNamespace):
    """`refuses`: what `init` raises, one an attempt."""

    def __init__(self):
        errors = SimpleNamespace(CommError=CommError, AuthenticationError=AuthenticationError)
        super().__init__(errors=errors, runs=[], refuses=[], torn_down=0)

    def init(self, **begun):
        if self.refuses:
            raise self.refuses.pop(0)
        self.runs.append(FakeRun(begun))
        return self.runs[-1]

    def teardown(self):
        self.torn_down += 1


@pytest.fixture
def wandb(monkeypatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "5")
    return fake


@pytest.fixture
def tracker(experiment):
    """tracker(**changes) -> of a run of 3 steps whose folder exists."""

    def make(first_step=0, active=True, **changes) -> Tracker:
        config = experiment(**{"wandb": "distortion", **changes})
        config.folder.mkdir(parents=True, exist_ok=True)
        return Tracker(config.folder, 3, first_step, active, config)

    return make


def test_a_run_reports_the_numbers_of_its_log_under_tensorboards_names(wandb, tracker):
    one = tracker(lora_rank=2)
    one.log(1, "warmup", 1, loss=0.5, lr=1e-3, val_f1_score=0.25, skipped="a, b")
    one.log(3, "main", 1, loss=math.nan)
    one.close()
    (run,) = wandb.runs
    assert run.rows[0] == {"step": 1, "train/loss": 0.5, "train/lr": 1e-3, "val/f1_score": 0.25}
    assert run.rows[1]["step"] == 3 and math.isnan(run.rows[1]["train/loss"])
    assert run.axes == [("*", "step")]
    assert run.ended == [0]
    assert (run.begun["project"], run.begun["name"], run.begun["dir"]) == ("distortion", "run", str(one.folder))
    assert run.begun["config"]["lora_rank"] == 2
    assert "mode" not in run.begun  # WANDB_MODE decides


def test_a_resumed_run_goes_on_with_the_same_wandb_run(wandb, tracker):
    first = tracker()
    first.log(1, "main", 1, loss=1.0)
    first.close()  # interrupted
    again = tracker(first_step=1)
    again.log(2, "main", 1, loss=0.9)
    again.log(3, "main", 1, loss=0.8)
    again.close()
    begun = [run.begun for run in wandb.runs]
    assert begun[0]["id"] == begun[1]["id"] and len(begun[0]["id"]) == 16
    assert [one["resume"] for one in begun] == ["allow", "allow"]
    assert [run.ended for run in wandb.runs] == [[1], [0]]  # failed, then finished
    assert tracker(experiment_name="another").wandb.run.begun["id"] != begun[0]["id"]


def test_nothing_is_reported_unless_asked_nor_by_other_ranks(wandb, tracker):
    for silent in (tracker(wandb=""), tracker(active=False)):
        silent.log(1, "main", 1, loss=1.0)
        silent.close()
    assert wandb.runs == [] and not list(silent.folder.glob("wandb*"))


def test_without_the_package_the_run_is_refused_before_it_begins(monkeypatch, experiment):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what import takes for "not installed"
    with pytest.raises(InputError, match="'distortion' needs the package wandb; run `pip install wandb`"):
        train(experiment(wandb="distortion"))
    assert not (experiment().folder / "metrics.jsonl").exists()


def test_a_folder_named_wandb_is_not_the_package(monkeypatch, tmp_path, tracker):
    (tmp_path / "cwd" / "wandb").mkdir(parents=True)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "cwd"), *(p for p in sys.path if p not in ("", "."))])
    with pytest.raises(InputError, match="needs the package wandb"):
        tracker()
    sys.modules.pop("wandb", None)


@pytest.mark.parametrize("error", [UsageError("No API key configured."), AuthenticationError("No API key configured.")])
def test_who_is_not_logged_in_is_told(wandb, tracker, error):
    wandb.refuses = [error]
    with pytest.raises(InputError, match=r"No API key configured.\); run `wandb login`, set WANDB_MODE=offline"):
        tracker()


def test_an_unreachable_server_leaves_a_recording(wandb, tracker, capsys):
    wandb.refuses = [CommError("connection refused")]
    one = tracker()
    one.log(1, "main", 1, loss=1.0)
    (run,) = wandb.runs
    assert run.begun["mode"] == "offline" and wandb.torn_down == 1
    assert run.rows == [{"step": 1, "train/loss": 1.0}]
    told = capsys.readouterr().out
    assert "connection refused" in told and f"{one.folder}/wandb" in told and "`wandb sync`" in told


def test_a_failure_while_reporting_is_told_once_and_stops_nothing(wandb, tracker, capsys):
    one = tracker()
    wandb.runs[0].breaks = BrokenPipeError("the service has died")
    for step in (1, 2, 3):
        one.log(step, "main", 1, loss=1.0)
    one.close()
    assert capsys.readouterr().out.count("reporting has stopped (the service has died)") == 1
    assert len(read_metrics(one.folder)) == 3


def test_a_failure_at_the_end_is_told(wandb, tracker, capsys):
    one = tracker()
    wandb.runs[0].breaks_at_the_end = TimeoutError("not uploaded")
    one.close()
    assert "could not be ended (not uploaded)" in capsys.readouterr().out


def test_a_training_that_is_stopped_and_resumed_is_one_wandb_run(wandb, experiment, monkeypatch):
    log = Tracker.log

    def interrupted(self, step, *args, **values):
        log(self, step, *args, **values)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Tracker, "log", interrupted)
        train(experiment(wandb="distortion"))
    folder = train(experiment(wandb="distortion"))
    first, second = wandb.runs
    assert first.begun["id"] == second.begun["id"]
    assert (first.ended, second.ended) == ([1], [0])
    steps = [row["step"] for run in wandb.runs for row in run.rows]
    assert steps == [row["step"] for row in read_metrics(folder)] == sorted(set(steps))


def test_a_run_may_begin_to_report_later(wandb, experiment):
    short = experiment(epoch=1, warmup_epoch=0)
    folder = train(short)
    (folder / "finished.json").unlink()
    train(experiment(epoch=1, warmup_epoch=0, wandb="distortion"))  # not refused as another recipe
    assert [run.ended for run in wandb.runs] == [[0]]
