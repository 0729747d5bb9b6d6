"""What surrounds a training: optimizer groups, precision, the run's folder and lock, signals, checkpoints on disk."""

import errno
import os
import signal
import sys
import time

import psutil
import pytest
import torch
from watching import assert_identical

from lib.config import Experiment
from lib.distributed import precision
from lib.errors import InputError
from lib.model.detector import DistortionDetector, set_trainable
from lib.signals import StopRequest
from lib.train import checkpoint as files
from lib.train import processes
from lib.train.checkpoint import is_being_trained, open_folder, sole_owner
from lib.train.loop import not_finite
from lib.train.schedule import make_optimizer


def test_the_optimizer_has_the_groups_of_the_recipe(experiment):
    config = experiment(lr=1e-2, backbone_lr_decay=0.1, min_lr=1e-3, weight_decay=0.3, backbone_weight_decay=0.2)
    detector = DistortionDetector.from_checkpoint(config)
    set_trainable(detector, "main")
    encoder, heads = make_optimizer(detector, config).param_groups
    assert (encoder["base_lr"], encoder["floor_lr"], encoder["weight_decay"]) == pytest.approx((1e-3, 1e-4, 0.2))
    assert (heads["base_lr"], heads["floor_lr"], heads["weight_decay"]) == pytest.approx((1e-2, 1e-3, 0.3))
    assert {id(p) for p in encoder["params"]} == {id(p) for p in detector.encoder.parameters()}
    assert len(encoder["params"]) + len(heads["params"]) == len(list(detector.parameters()))
    set_trainable(detector, "warmup")
    assert len(make_optimizer(detector, config).param_groups) == 1


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


def test_another_engine_is_refused(experiment, monkeypatch):
    class Other(processes.Accelerator):
        distributed_type = processes.DistributedType.DEEPSPEED

    monkeypatch.setattr(processes, "Accelerator", Other)
    with pytest.raises(InputError, match="DEEPSPEED is not supported, only DDP; start with torchrun"):
        processes.make_accelerator(experiment())


# The run's folder


def test_a_run_may_go_on_after_parameters_came_and_went(experiment):
    folder = open_folder(experiment())
    (folder / "finished.json").write_text("{}")
    lines = (folder / "config.yaml").read_text().splitlines(True)
    old = "".join(line for line in lines if "ema_decay" not in line) + "accelerate_config: fsdp.yaml\n"
    (folder / "config.yaml").write_text(old)
    assert Experiment.from_yaml(folder / "config.yaml") == experiment()
    open_folder(experiment())  # what is newer had the default
    (folder / "config.yaml").write_text(old)
    with pytest.raises(InputError, match="ema_decay: 0.999 then, 0.5 now"):
        open_folder(experiment(ema_decay=0.5))


def test_a_run_with_nothing_to_lose_may_change_its_parameters(experiment):
    """Its first command may have been refused for a mistyped one of them."""
    folder = open_folder(experiment(lr=1e-3))
    (folder / "metrics.jsonl").touch()
    (folder / "checkpoints" / "step_00000003.part").mkdir(parents=True)
    open_folder(experiment(lr=1e-2))
    assert Experiment.from_yaml(folder / "config.yaml").lr == 1e-2


@pytest.mark.parametrize("kept", ["finished.json", "metrics.jsonl", "checkpoints/step_00000003/state.json"])
def test_a_run_with_something_to_lose_keeps_its_parameters(experiment, kept):
    folder = open_folder(experiment(lr=1e-3))
    (folder / kept).parent.mkdir(parents=True, exist_ok=True)
    (folder / kept).write_text("{}\n")
    with pytest.raises(InputError, match="begun with other parameters .lr: 0.001 then, 0.01 now.; restore them"):
        open_folder(experiment(lr=1e-2))
    assert Experiment.from_yaml(folder / "config.yaml").lr == 1e-3


def test_two_trainings_into_one_folder_are_refused_and_a_killed_one_holds_nothing(experiment, fork_server, tmp_path):
    folder = open_folder(experiment(lr=1e-3))
    assert not is_being_trained(folder)
    holder = fork_server.start("killing", "hold", [str(folder)], tmp_path / "log")
    holder.wait_until(lambda: is_being_trained(folder))
    with pytest.raises(InputError, match="is being trained by another process"), sole_owner(folder):
        pass
    with pytest.raises(InputError, match="lr: 0.001 then, 0.01 now"):  # nor do its parameters change
        open_folder(experiment(lr=1e-2))
    holder.kill()
    assert not is_being_trained(folder)
    with sole_owner(folder):
        pass


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


def test_nothing_is_left_running_after_a_second_interrupt(monkeypatch, tmp_path):
    # torchrun gives every rank a session of its own, which no signal to its group reaches.
    rank = "import subprocess, sys, time; sleep = [sys.executable, '-c', 'import time; time.sleep(60)']; "
    rank += "print(subprocess.Popen(sleep, start_new_session=True).pid, flush=True); time.sleep(60)"
    seen = []

    def interrupted(line, **_):
        seen.append(int(line))
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "torchrun", lambda *_: [sys.executable, "-c", rank])
    monkeypatch.setattr(processes, "print", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        processes.run_in_processes("module", tmp_path, 1)
    psutil.wait_procs([psutil.Process(seen[0])] if psutil.pid_exists(seen[0]) else [], timeout=10)
    assert not psutil.pid_exists(seen[0])


def test_of_many_images_a_message_names_eight_and_says_where_the_others_are():
    error = not_finite("loss", 1, 3, [f"i{number}" for number in range(12)], can_skip=True)
    assert "(images i0, i1, i2, i3, i4, i5, i6, i7 and 4 more, all in metrics.jsonl)" in str(error)


# Checkpoints on disk

TENSORS = {
    "model": {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7)},
    "optimizer": {"0.step": torch.tensor(1.0)},
}


def save(run, *steps, keep=9):
    for step in steps:
        files.save_checkpoint(run, step, TENSORS, {"scaler": None}, keep)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    save(tmp_path, 3)
    path = files.latest_checkpoint(tmp_path)
    assert path == tmp_path / "checkpoints" / "step_00000003"
    for group, tensors in TENSORS.items():
        assert_identical(files.read_group(path, group), tensors)
    assert files.read_state(path) == {"scaler": None, "step": 3}


def test_only_the_newest_are_kept_and_remains_of_interrupted_saves_go(tmp_path):
    assert files.latest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints" / "step_00000002.part").mkdir(parents=True)
    save(tmp_path, 1, 2, 3, 12, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000003", "step_00000012"]
    files.prune(tmp_path, 0)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_folder_that_cannot_be_written_is_refused(experiment, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Experiment, "save", full)
    with pytest.raises(InputError, match="run cannot be written .No space left on device.; free space, or choose"):
        open_folder(experiment())


def test_an_error_while_writing_leaves_the_old_folder(tmp_path):
    with files.written_aside(tmp_path / "model") as part:
        (part / "a").write_text("old")
    with pytest.raises(RuntimeError), files.written_aside(tmp_path / "model") as part:
        (part / "a").write_text("new")
        raise RuntimeError
    assert (tmp_path / "model" / "a").read_text() == "old"
    with files.written_aside(tmp_path / "model") as part:
        (part / "b").write_text("new")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["b"]


def test_optimizer_state_comes_back_and_the_next_step_is_the_same():
    def after(steps, saved=None):
        torch.manual_seed(0)
        weights = [torch.randn(3, requires_grad=True), torch.randn(2, 2, requires_grad=True)]
        optimizer = torch.optim.AdamW([{"params": weights[:1], "base_lr": 1.0}, {"params": weights[1:]}], lr=0.1)
        if saved:
            with torch.no_grad():
                for weight, value in zip(weights, saved[0], strict=True):
                    weight.copy_(value)
            files.load_optimizer_tensors(optimizer, saved[1])
        for step in steps:
            for weight in weights:
                weight.grad = weight.detach() * step + 1
            optimizer.step()
        return [weight.detach() for weight in weights], files.optimizer_tensors(optimizer)

    whole, first = after([1, 2, 3]), after([1, 2])
    resumed = after([3], (first[0], {name: value.clone() for name, value in first[1].items()}))
    assert all(torch.equal(a, b) for a, b in zip(whole[0], resumed[0], strict=True))
    assert_identical(whole[1], resumed[1])
