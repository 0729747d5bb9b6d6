"""What surrounds a training: precision, the run's folder and lock, signals."""

import os
import signal
import time

import pytest
import torch

from lib.config import Experiment
from lib.distributed import precision
from lib.errors import InputError
from lib.signals import StopRequest
from lib.train.checkpoint import opened_folder


@pytest.mark.parametrize(
    ("changes", "gpu", "has_bf16", "expected"),
    [
        ({}, False, False, "no"), ({}, True, True, "bf16"), ({}, True, False, "fp16"),
        ({"fp16": True}, True, True, "fp16"), ({"mixed_precision": "bf16"}, False, False, "bf16"),
        ({"mixed_precision": "no"}, True, True, "no"),
    ],
)  # fmt: skip
def test_precision_is_what_was_asked_for_or_what_the_device_can_do(
    experiment, monkeypatch, changes, gpu, has_bf16, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    # By default torch says yes to a GPU that emulates it, slower than float32.
    supported = lambda including_emulation=True: has_bf16 or including_emulation  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert precision(experiment(**changes)) == expected


# The run's folder


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


# Signals


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
