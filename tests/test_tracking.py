"""What a run records: rows and their time, rows shown while it trains, Weights & Biases by a stand-in."""

import json
import sys
from unittest.mock import Mock

import pytest
from watching import signal_in_step

from lib.errors import InputError
from lib.signals import Interrupted
from lib.train import launch, log, read_metrics, train
from lib.train.accelerator import make_accelerator
from lib.train.log import Log


def test_records_after_the_checkpoint_are_dropped_and_time_goes_on(experiment):
    config = experiment()
    config.folder.mkdir(parents=True)
    first = Log(config, make_accelerator(config), 10, 0)
    for step in (1, 2, 3):
        first.record(step, "main", 1, loss=float(step))
    first.close()
    path, rows = first.path, read_metrics(first.path.parent)
    rows[1]["seconds"] = 100.0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')  # killed while writing
    again = Log(config, make_accelerator(config), 10, 2)
    again.started -= 5
    again.record(3, "main", 1, loss=30.0)
    again.close()
    rows = read_metrics(path.parent)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert rows[-1]["seconds"] >= 105.0 and rows[-1]["total"] == 10
    assert rows[-1]["left"] == pytest.approx(7 * 35, abs=5)  # seven steps at the pace of the run so far


# Rows while it trains


def test_launch_shows_the_rows_as_they_grow(experiment, monkeypatch):
    monkeypatch.setattr(log, "PERIOD", 0.0)
    shown = []
    run = launch(experiment(epoch=1, batch_size=8), on_rows=shown.append)
    lengths = [len(rows) for rows in shown]
    assert len(lengths) > 2 and lengths == sorted(lengths)
    assert shown[-1] == read_metrics(run)


# Weights & Biases


@pytest.fixture
def wandb(monkeypatch) -> Mock:
    """A stand-in for the package, whose `init` gives itself as the run."""
    fake = Mock()
    fake.init.return_value = fake
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "5")
    return fake


def test_a_stopped_and_resumed_training_is_one_wandb_run(wandb, experiment):
    config = experiment(wandb="distortion", lora_rank=2, val_iter=1)
    with signal_in_step(5), pytest.raises(Interrupted):
        train(config)
    train(config)
    first, second = (call.kwargs for call in wandb.init.call_args_list)
    assert first == second and first["resume"] == "allow" and len(first["id"]) == 16 and wandb.finish.call_count == 2
    assert (first["project"], first["name"], first["dir"]) == ("distortion", "run", str(config.folder))
    assert first["config"]["lora_rank"] == 2 and "mode" not in first  # WANDB_MODE decides
    rows = read_metrics(config.folder)
    logged = [(call.kwargs["step"], call.args[0]) for call in wandb.log.call_args_list]
    assert [step for step, _ in logged] == [row["step"] for row in rows]
    assert logged[0][1] == {f"train/{name}": rows[0][name] for name in ("loss", "mask_loss", "score_loss", "lr")}
    assert {"val/final_score": rows[3]["val_final_score"]}.items() <= logged[3][1].items()


def test_who_is_not_logged_in_is_told(wandb, experiment):
    wandb.init.side_effect = RuntimeError("No API key configured.")
    with pytest.raises(InputError, match=r"No API key configured.\); run .*`wandb login`, set WANDB_MODE=offline"):
        train(experiment(wandb="distortion"))
    assert not (experiment().folder / "metrics.jsonl").exists()  # refused before it begins
