"""What a run records: rows and their time, rows shown while it trains, Weights & Biases through a stand-in."""

import json
import os
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from lib.distributed import clock
from lib.errors import InputError
from lib.signals import Interrupted
from lib.train import follow, launch, log, read_metrics, train
from lib.train.checkpoint import sole_owner
from lib.train.log import Log, RowsShown
from lib.train.processes import make_accelerator


@pytest.fixture
def opened(experiment):
    """opened(first step, **changes) -> the log of a run of ten steps."""

    def make(first=0, **changes) -> Log:
        config = experiment(**changes)
        config.folder.mkdir(parents=True, exist_ok=True)
        return Log(config, make_accelerator(config), 10, first)

    return make


def test_records_after_the_checkpoint_are_dropped_and_time_goes_on(opened):
    first = opened()
    for step in (1, 2, 3):
        first.record(step, "main", 1, loss=float(step))
    first.close()
    path, rows = first.path, read_metrics(first.path.parent)
    rows[1]["seconds"] = 100.0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')  # killed while writing
    again = opened(2)
    again.started -= 5
    again.record(3, "main", 1, loss=30.0)
    again.close()
    rows = read_metrics(path.parent)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert rows[-1]["seconds"] >= 105.0 and rows[-1]["total"] == 10
    assert rows[-1]["left"] == pytest.approx(35, abs=1)  # seven steps, as this process took for one


def test_an_evaluation_made_up_for_has_the_pace_of_the_earlier_process(opened):
    opened().record(2, "main", 1, loss=2.0)
    path = opened(2).path
    path.write_text(json.dumps(read_metrics(path.parent)[0] | {"seconds": 60.0}) + "\n")
    again = opened(2)
    again.started -= 5  # which loading took, and says nothing about a step
    again.record(2, "main", 1, val_f1_score=0.5)
    assert read_metrics(path.parent)[-1]["left"] == pytest.approx(8 * 30)


def test_a_line_that_nobody_reads_costs_no_training(opened, monkeypatch):
    monkeypatch.setattr("builtins.print", lambda *_, **__: (_ for _ in ()).throw(BrokenPipeError))
    one = opened()
    one.record(1, "main", 1, loss=1.0)
    assert len(read_metrics(one.path.parent)) == 1


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (75, "1:15"), (3599.6, "1:00:00"), (90061, "25:01:01")])
def test_clock(seconds, shown):
    assert clock(seconds) == shown


# Rows while it trains


def test_launch_shows_the_rows_as_they_grow(experiment, monkeypatch):
    monkeypatch.setattr(log, "PERIOD", 0.0)
    shown = []
    run = launch(experiment(epoch=1, batch_size=8), on_rows=shown.append)
    lengths = [len(rows) for rows in shown]
    assert len(lengths) > 2 and lengths == sorted(set(lengths))
    assert shown[-1] == read_metrics(run)


def test_rows_are_shown_once_a_second_and_at_the_end(opened):
    one, shown = opened(), []
    show = RowsShown(one.path.parent, shown.append)
    for step in (1, 2, 3):
        one.record(step, "main", 1, loss=1.0)
        show()
    show.now()
    show.now()
    assert [len(rows) for rows in shown] == [1, 3]


def test_an_interrupt_shows_the_rows_and_is_one_sentence(experiment, monkeypatch):
    monkeypatch.setattr("lib.train.loop.Run._update", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted, match="^Stopped; the same command goes on from the newest checkpoint.$"):
        launch(experiment())


def test_another_process_can_follow_a_run(opened, experiment, monkeypatch):
    monkeypatch.setattr(log, "PERIOD", 0.01)
    one = opened()
    folder = one.path.parent
    experiment().save(folder / "config.yaml")

    def training():
        with sole_owner(folder):
            for step in (1, 2, 3):
                one.record(step, "main", 1, loss=1.0)
                time.sleep(0.1)
            (folder / "finished.json").write_text("{}")

    thread = threading.Thread(target=training)
    thread.start()
    lengths = [len(rows) for rows in follow(folder)]
    thread.join()
    assert lengths == [1, 2, 3]
    (folder / "finished.json").unlink()
    assert len(list(follow(folder, patience=0))) == 1  # nobody trains it
    with pytest.raises(InputError, match="there is no run .*/nothing; there are .*/run"):
        next(follow(folder.parent / "nothing"))


# Weights & Biases


class FakeWandb(SimpleNamespace):
    """The package, noting every call; `refuses` is raised by `init`."""

    def __init__(self):
        super().__init__(begun=[], rows=[], ended=0, refuses=None)

    def init(self, **begun):
        if self.refuses:
            raise self.refuses
        self.begun.append(begun)
        return self

    def log(self, row, step):
        self.rows.append((step, row))

    def finish(self):
        self.ended += 1


@pytest.fixture
def wandb(monkeypatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "5")
    return fake


def test_a_stopped_and_resumed_training_is_one_wandb_run(wandb, experiment, monkeypatch):
    config, record = experiment(wandb="distortion", lora_rank=2, val_iter=1), Log.record

    def interrupted(self, step, *args, **values):
        record(self, step, *args, **values)
        if step == 5:
            os.kill(os.getpid(), 15)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Log, "record", interrupted)
        train(config)
    train(config)
    first, second = wandb.begun
    assert first == second and first["resume"] == "allow" and len(first["id"]) == 16 and wandb.ended == 2
    assert (first["project"], first["name"], first["dir"]) == ("distortion", "run", str(config.folder))
    assert first["config"]["lora_rank"] == 2 and "mode" not in first  # WANDB_MODE decides
    rows = read_metrics(config.folder)
    assert [step for step, _ in wandb.rows] == [row["step"] for row in rows]
    assert wandb.rows[0][1] == {f"train/{name}": rows[0][name] for name in ("loss", "mask_loss", "score_loss", "lr")}
    assert {"val/final_score": rows[3]["val_final_score"]}.items() <= wandb.rows[3][1].items()


def test_nothing_is_reported_unless_asked(wandb, opened):
    one = opened()
    one.record(1, "main", 1, loss=1.0)
    one.close()
    assert not wandb.begun and not list(one.path.parent.glob("wandb*"))


@pytest.mark.parametrize("missing", [None, SimpleNamespace()], ids=["no package", "a folder of that name"])
def test_without_the_package_the_run_is_refused_before_it_begins(monkeypatch, experiment, missing):
    monkeypatch.setitem(sys.modules, "wandb", missing)
    with pytest.raises(InputError, match="'distortion' needs the package wandb; run `pip install wandb`"):
        train(experiment(wandb="distortion"))
    assert not (experiment().folder / "metrics.jsonl").exists()


def test_who_is_not_logged_in_is_told(wandb, experiment):
    wandb.refuses = RuntimeError("No API key configured.")
    with pytest.raises(InputError, match=r"No API key configured.\); run `wandb login`, set WANDB_MODE=offline"):
        train(experiment(wandb="distortion"))
