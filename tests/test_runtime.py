"""What surrounds a training: optimizer groups, folders, locks, signals, checkpoints on disk, records."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from watching import assert_identical

from lib.config import Experiment
from lib.errors import InputError
from lib.model.detector import DistortionDetector, set_trainable
from lib.train import checkpoints, launch, runtime, signals
from lib.train.memory import TooLargeError, scarce
from lib.train.run_folder import cut_micro_batches, is_being_trained, open_folder, read_splits, sole_owner
from lib.train.runtime import make_optimizer
from lib.train.schedule import plan_stages
from lib.train.signals import Interrupted, StopRequest, ended_at_once
from lib.train.skipping import Skipping
from lib.train.tracking import Tracker, clock, read_metrics


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
        ({"fp16": True}, True, True, "fp16"), ({"fp16": True}, True, False, "fp16"),
        ({"mixed_precision": "fp16"}, True, True, "fp16"), ({"mixed_precision": "bf16"}, True, True, "bf16"),
        ({"mixed_precision": "bf16"}, False, False, "bf16"), ({"mixed_precision": "no"}, True, True, "no"),
        ({"mixed_precision": "no"}, False, False, "no"),
    ],
)  # fmt: skip
def test_precision_is_what_was_asked_for_or_what_the_device_can_do(
    experiment, monkeypatch, changes, gpu, has_bf16, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    # By default torch says yes to a GPU that emulates it, slower than float32.
    supported = lambda including_emulation=True: has_bf16 or including_emulation  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert runtime.precision(experiment(**changes)) == expected


def test_another_engine_is_refused(experiment, monkeypatch):
    class Other(runtime.Accelerator):
        distributed_type = runtime.DistributedType.DEEPSPEED

    monkeypatch.setattr(runtime, "Accelerator", Other)
    with pytest.raises(InputError, match="DEEPSPEED is not supported; .* FSDP file in the parameter accelerate_config"):
        runtime.make_accelerator(experiment())


def test_a_run_may_go_on_after_the_kit_got_a_new_parameter(experiment):
    config = experiment()
    folder = open_folder(config)
    (folder / "finished.json").write_text("{}")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text("".join(line for line in text.splitlines(True) if "ema_decay" not in line))
    open_folder(config)  # it had the default
    with pytest.raises(InputError, match="ema_decay: 0.999 then, 0.5 now"):
        (folder / "config.yaml").write_text("".join(line for line in text.splitlines(True) if "ema_decay" not in line))
        open_folder(experiment(ema_decay=0.5))


def test_a_run_with_nothing_to_lose_may_change_its_parameters(experiment):
    """Its first command may have been refused for a mistyped one of them."""
    folder = open_folder(experiment(lr=1e-3))
    cut_micro_batches(folder, "main", 4, 1)
    (folder / "metrics.jsonl").touch()
    (folder / "checkpoints" / "step_00000003.part").mkdir(parents=True)
    open_folder(experiment(lr=1e-3))
    assert read_splits(folder) == {"main": 2}
    open_folder(experiment(lr=1e-2))
    assert Experiment.from_yaml(folder / "config.yaml").lr == 1e-2
    assert read_splits(folder) == {}  # found with other parameters


@pytest.mark.parametrize("kept", ["finished.json", "metrics.jsonl", "checkpoints/step_00000003/state.json"])
def test_a_run_with_something_to_lose_keeps_its_parameters(experiment, kept):
    folder = open_folder(experiment(lr=1e-3))
    (folder / kept).parent.mkdir(parents=True, exist_ok=True)
    (folder / kept).write_text("{}\n")
    with pytest.raises(InputError, match="begun with other parameters .lr: 0.001 then, 0.01 now.; restore them"):
        open_folder(experiment(lr=1e-2))
    assert Experiment.from_yaml(folder / "config.yaml").lr == 1e-3


def test_a_full_disk_is_told_before_a_run_begins(experiment, monkeypatch):
    config = experiment()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Experiment, "save", full)
    with pytest.raises(InputError, match="run cannot be written .No space left on device.; free space, or choose"):
        open_folder(config)


HOLD = "import sys, time; from pathlib import Path; from lib.train.run_folder import sole_owner\n" \
    "with sole_owner(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"  # fmt: skip


def test_two_trainings_into_one_folder_are_refused_and_a_killed_one_holds_nothing(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="is being trained by another process"), sole_owner(tmp_path):
            pass
        assert is_being_trained(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    assert not is_being_trained(tmp_path)
    with sole_owner(tmp_path):
        pass


def test_parameters_do_not_change_under_a_training_that_has_just_begun(experiment):
    folder = open_folder(experiment(lr=1e-3))
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="lr: 0.001 then, 0.01 now"):
            open_folder(experiment(lr=1e-2))
    finally:
        holder.kill()
        holder.wait()


def test_a_folder_without_a_lock_is_not_being_trained(tmp_path):
    assert not is_being_trained(tmp_path)


def test_a_stop_signal_is_remembered_and_a_repeated_one_is_the_same_request(monkeypatch):
    before, calls = signal.getsignal(signal.SIGTERM), []
    with StopRequest(calls.append) as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun sends it on although the process group had it already
        time.sleep(0.01)
        assert stop and stop.name == "SIGTERM" and calls == [signal.SIGTERM]
        monkeypatch.setattr(signals, "SAME_REQUEST", 0.0)
        with pytest.raises(KeyboardInterrupt):  # the user insists
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    assert signal.getsignal(signal.SIGTERM) == before


def test_while_nothing_is_to_be_saved_a_stop_signal_ends_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM: stopped; the same command goes on"), ended_at_once():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        pytest.fail("went on")
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_ranks_keep_the_system_s_answer_to_signals(monkeypatch):
    """They may wait for the first one in a call during which no handler runs."""
    monkeypatch.setenv("RANK", "1")
    before = signal.getsignal(signal.SIGTERM)
    with ended_at_once():
        assert signal.getsignal(signal.SIGTERM) == before


def test_micro_batches_are_halved_stage_by_stage(tmp_path):
    assert read_splits(tmp_path) == {}
    cut_micro_batches(tmp_path, "main", 4, 1)
    cut_micro_batches(tmp_path, "warmup", 8, 1)
    cut_micro_batches(tmp_path, "main", 2, 2)
    assert read_splits(tmp_path) == {"main": 4, "warmup": 2}
    with pytest.raises(InputError, match="one image at a time"):
        cut_micro_batches(tmp_path, "main", 1, 4)


@given(
    images=st.integers(1, 60), batch=st.integers(1, 9), accumulate=st.integers(1, 4), world=st.integers(1, 3),
    splits=st.integers(1, 9),
)  # fmt: skip
def test_smaller_micro_batches_leave_every_step_its_images(images, batch, accumulate, world, splits):
    class Config:
        warmup_epoch, epoch, batch_size, batch_size_warmup, accumulate_step, seed = 0, 2, batch, batch, accumulate, 5

    def step(number, splits):
        ranks = [
            plan_stages(Config, images, r, world, {"main": splits})[0].sampler.micro_batches(number)
            for r in range(world)
        ]
        assert len({len(parts) for parts in ranks}) == 1  # ranks must meet at every micro-batch
        largest = max(len(part) for parts in ranks for part in parts)
        return sorted(key[:2] for parts in ranks for part in parts for key in part if key[2]), largest

    stage = plan_stages(Config, images, 0, world, {"main": splits})[0]
    for number in range(stage.last):
        keys, largest = step(number, splits)
        assert keys == step(number, 1)[0] and len(keys) == stage.sampler.images_in_step(number)
        assert largest <= max(1, -(-batch // splits))


# Checkpoints on disk

TENSORS = {
    "model": {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7)},
    "optimizer": {"0.step": torch.tensor(1.0)},
}


def save(folder, *steps, keep=9):
    for step in steps:
        checkpoints.save_checkpoint(folder, step, TENSORS, {"best": 0.5}, keep)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    save(tmp_path, 3)
    path = checkpoints.latest_checkpoint(tmp_path)
    assert path == tmp_path / "step_00000003"
    for group, tensors in TENSORS.items():
        assert_identical(checkpoints.read_group(path, group), tensors)
    state = checkpoints.read_state(path)
    assert (state["step"], state["best"]) == (3, 0.5)


def test_only_the_newest_are_kept_and_remains_of_interrupted_saves_go(tmp_path):
    (tmp_path / "step_00000002.part").mkdir(parents=True)
    save(tmp_path, 1, 2, 3, 12, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003", "step_00000012"]
    checkpoints.prune(tmp_path, 0)
    assert not list(tmp_path.iterdir())
    assert checkpoints.latest_checkpoint(tmp_path) is None


def tear_truncate(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def tear_delete(path):
    (path / "optimizer.safetensors").unlink()


def tear_state(path):
    (path / "state.json").write_text('{"step": ')


def tear_rename(path):
    path.rename(path.with_name(path.name + ".part"))


TEARS = [tear_truncate, tear_delete, tear_state, tear_rename]


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path, tear, capsys):
    save(tmp_path, 1, 2)
    tear(tmp_path / "step_00000002")
    assert checkpoints.latest_checkpoint(tmp_path) == tmp_path / "step_00000001"
    if tear is not tear_rename:
        assert "step_00000002 is not whole" in capsys.readouterr().out
    # It must not count among those that are kept, or the only whole one would go at the next save.
    save(tmp_path, 3, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000003"]


def test_a_disk_that_fails_for_a_moment_costs_no_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        stale = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        patch.setattr(checkpoints, "read_state", lambda path: (_ for _ in ()).throw(stale))
        with pytest.raises(InputError, match="step_00000002 cannot be read .Stale file handle.; mend that"):
            checkpoints.latest_checkpoint(tmp_path)
    assert checkpoints.latest_checkpoint(tmp_path) == tmp_path / "step_00000002"
    assert (tmp_path / "step_00000001").is_dir()


def test_a_torn_checkpoint_stays_until_the_next_save(tmp_path):
    save(tmp_path, 1)
    for _ in range(2):  # torn, and torn again after training came that far once more
        tear_truncate(tmp_path / "step_00000001")
        assert checkpoints.latest_checkpoint(tmp_path) is None
        assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.torn"]
        (tmp_path / "step_00000001.torn").rename(tmp_path / "step_00000001")
    save(tmp_path, 2)
    assert not list(tmp_path.glob("*.torn"))


def test_nothing_is_left_running_after_a_second_interrupt(monkeypatch):
    # torchrun gives every rank a session of its own, which no signal to its group reaches.
    rank = "import subprocess, sys, time; sleep = [sys.executable, '-c', 'import time; time.sleep(60)']; "
    rank += "print(subprocess.Popen(sleep, start_new_session=True).pid, flush=True); time.sleep(60)"
    told = []

    def interrupted(line, **_):
        told.append(int(line))
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "print", interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        launch._run_child([sys.executable, "-c", rank])
    psutil.wait_procs([psutil.Process(told[0])] if psutil.pid_exists(told[0]) else [], timeout=10)
    assert not psutil.pid_exists(told[0])


def test_of_many_images_a_message_names_eight_and_says_where_the_others_are():
    with pytest.raises(InputError, match=r"\(images i0, .* i7 and 4 more, all in metrics.jsonl\)"):
        Skipping("stop", total=9).loss(3, [f"i{number}" for number in range(12)])


def test_memory_that_ran_out_is_known_by_what_the_libraries_say():
    for said in ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", "CUDA error: out of memory",
                 "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"):  # fmt: skip
        with pytest.raises(TooLargeError), scarce(TooLargeError()):
            raise RuntimeError(said)
    with pytest.raises(TooLargeError), scarce(TooLargeError()):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shapes"), scarce(TooLargeError()):
        raise RuntimeError("shapes do not fit")


def test_an_error_while_writing_leaves_the_old_folder(tmp_path):
    with checkpoints.written_aside(tmp_path / "model") as part:
        (part / "a").write_text("old")
    with pytest.raises(RuntimeError), checkpoints.written_aside(tmp_path / "model") as part:
        (part / "a").write_text("new")
        raise RuntimeError
    assert (tmp_path / "model" / "a").read_text() == "old"
    with checkpoints.written_aside(tmp_path / "model") as part:
        (part / "b").write_text("new")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["b"]


def test_a_damaged_group_is_told(tmp_path):
    save_file({"w": torch.zeros(3)}, tmp_path / "model.safetensors")
    tear_truncate(tmp_path)
    with pytest.raises(InputError, match="model.safetensors cannot be read .* delete .* older checkpoint"):
        checkpoints.read_group(tmp_path, "model")


def test_optimizer_state_comes_back_and_the_next_step_is_the_same():
    def after(steps, saved=None):
        torch.manual_seed(0)
        weights = [torch.randn(3, requires_grad=True), torch.randn(2, 2, requires_grad=True)]
        optimizer = torch.optim.AdamW([{"params": weights[:1], "base_lr": 1.0}, {"params": weights[1:]}], lr=0.1)
        if saved:
            with torch.no_grad():
                for weight, value in zip(weights, saved[0], strict=True):
                    weight.copy_(value)
            checkpoints.load_optimizer_tensors(optimizer, saved[1])
        for step in steps:
            for weight in weights:
                weight.grad = weight.detach() * step + 1
            optimizer.step()
        return [weight.detach() for weight in weights], checkpoints.optimizer_tensors(optimizer)

    whole, first = after([1, 2, 3]), after([1, 2])
    resumed = after([3], (first[0], {name: value.clone() for name, value in first[1].items()}))
    assert all(torch.equal(a, b) for a, b in zip(whole[0], resumed[0], strict=True))
    assert_identical(whole[1], resumed[1])


# Records


def test_records_after_the_checkpoint_are_dropped_and_time_goes_on(tmp_path):
    first = Tracker(tmp_path, 10, 0)
    for step in (1, 2, 3):
        first.log(step, "main", 1, loss=float(step))
    first.close()
    rows = read_metrics(tmp_path)
    rows[1]["seconds"] = 100.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    again = Tracker(tmp_path, 10, 2)
    again.started -= 5
    again.log(3, "main", 1, loss=30.0)
    again.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert read_metrics(tmp_path)[-1]["seconds"] >= 105.0
    assert read_metrics(tmp_path)[-1]["left"] == pytest.approx(35, abs=1)  # seven steps, as this process took for one
    assert read_metrics(tmp_path)[-1]["total"] == 10
    assert again.seconds >= 100.0


def test_an_evaluation_made_again_takes_the_place_of_its_record(tmp_path):
    first = Tracker(tmp_path, 10, 0)
    first.log(2, "main", 1, loss=2.0)
    first.log(2, "main", 1, val_f1_score=0.5)
    first.close()
    rows = [row | {"seconds": 60.0} for row in read_metrics(tmp_path)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = Tracker(tmp_path, 10, 2, again=True)
    again.started -= 5  # which loading took, and says nothing about a step
    again.log(2, "main", 1, val_f1_score=0.5)
    again.close()
    rows = read_metrics(tmp_path)
    assert [(row.get("loss"), row.get("val_f1_score")) for row in rows] == [(2.0, None), (None, 0.5)]
    assert rows[-1]["left"] == pytest.approx(8 * 30)


def test_other_ranks_write_nothing(tmp_path, capsys):
    tracker = Tracker(tmp_path, 10, 0, active=False)
    tracker.log(1, "main", 1, loss=1.0)
    tracker.close()
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00"), (75, "1:15"), (3599.6, "1:00:00"), (90061, "25:01:01")])
def test_clock(seconds, shown):
    assert clock(seconds) == shown
