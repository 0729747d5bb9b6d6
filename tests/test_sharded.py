"""Two gloo processes that share out the weights do what two with whole models do; other layouts are refused."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fork_server import free_port
from ranks import step_gradients
from safetensors.torch import load_file
from watching import assert_identical, model_weights

from lib.config import Experiment
from lib.errors import InputError
from lib.model.detector import DistortionDetector
from lib.train import launch as launch_module
from lib.train.fsdp import Layout, read_layout
from lib.train.launch import launch
from lib.train.runtime import make_accelerator
from lib.train.tracking import read_metrics

RUNS = ("sharded", "ddp")
SHIPPED = Path(__file__).parents[1] / "notebooks/params/accelerate/fsdp.yaml"
FSDP = {"fsdp_version": 2, "fsdp_auto_wrap_policy": "NO_WRAP", "fsdp_reshard_after_forward": False}
# 13 training images. Of 2 x 2 a step the last of four has one: the second rank has none.
RECIPE = {
    "val_split": 11, "batch_size": 2, "batch_size_warmup": 2, "num_processes": 2, "epoch": 2, "val_iter": 1,
    "save_iter": 1, "keep_checkpoints": 2, "ema": True, "ema_decay": 0.9, "clip_grad_norm": 1.0,
    "accelerate_config": str(SHIPPED),
}  # fmt: skip
CASES = [
    ("warmup", 3, {}), ("main", 0, {}), ("main", 0, {"accumulate_step": 2, "gradient_checkpointing": True}),
    ("main", 3, {"lora_rank": 2, "lora_dropout": 0.0}), ("main", 0, {"accelerate_config": "whole.yaml"}),
]  # fmt: skip
# A bias in front of a norm has no gradient but rounding, of which Adam makes whole steps; and a mean that follows it.
NOISE = (
    "score_head.mlp.0.bias", "score_head.mlp.3.bias", "score_head.mlp.1.running_mean", "score_head.mlp.4.running_mean",
    "mask_head.fuse.1.0.bias", "mask_head.up.0.conv.bias",
)  # fmt: skip


def ended(children) -> list[int]:
    return [child.wait() for child in children]


def logs(children) -> str:
    return "\n".join(child.log.read_text() for child in children)


@pytest.fixture(scope="module")
def runs(micro_experiment, still_checkpoint, fork_server, tmp_path_factory):
    """(config, folder with what two processes left: gradients, the runs `ddp` and `sharded`)"""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "whole.yaml").write_text(yaml.safe_dump({"distributed_type": "FSDP", "fsdp_config": FSDP}))
    CASES[-1][2]["accelerate_config"] = str(folder / "whole.yaml")
    config = micro_experiment(folder, checkpoint=str(still_checkpoint), **RECIPE)
    config.save(folder / "config.yaml")
    arguments = [str(folder / "config.yaml"), CASES, str(folder)]
    children = fork_server.start_ranks("ranks", "sharded", arguments, folder)
    assert ended(children) == [0, 0], logs(children)
    assert "12 steps sharded over 2 x cpu in fp32" in logs(children) and "FSDP2-wrapped" not in logs(children)
    return config, folder


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{CASES[n][0]}-{'-'.join(CASES[n][2])}")
def test_sharded_ranks_have_the_gradients_of_one_process(runs, number):
    config, folder = runs
    stage, step, changes = CASES[number]
    one = {"num_processes": 1, "batch_size": 4, "batch_size_warmup": 4, **changes, "accelerate_config": ""}
    config = Experiment.from_dict({**config.to_dict(), **one})
    alone = step_gradients(config, make_accelerator(config), stage, step)
    together = load_file(folder / f"{number}.safetensors")
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def assert_like_ddp(run, ddp):
    """Both stages, clipping, averages and evaluation included, the weights are the same but for rounding."""
    for name in ("model", "best"):
        weights, expected = model_weights(run, name), model_weights(ddp, name)
        assert weights.keys() == expected.keys()
        for key in expected.keys() - set(NOISE):
            torch.testing.assert_close(weights[key], expected[key], rtol=0, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    for name in ("loss", "val_final_score"):
        rows, expected_rows = ([row[name] for row in read_metrics(r) if name in row] for r in (run, ddp))
        assert rows == pytest.approx(expected_rows, abs=2e-3) and len(rows) > 2


def test_a_sharded_run_ends_with_the_weights_of_whole_models(runs):
    assert_like_ddp(runs[1] / "sharded", runs[1] / "ddp")


def test_what_a_sharded_run_writes_is_whole(runs):
    found, expected = (
        {path.relative_to(run): path for path in run.rglob("*.safetensors")} for run in (runs[1] / n for n in RUNS)
    )
    assert found.keys() == expected.keys() and len(found) == 2 * 2 + 2 * 3  # model and best; two checkpoints
    for name, path in found.items():
        shapes = [{key: value.shape for key, value in load_file(p).items()} for p in (path, expected[name])]
        assert shapes[0] == shapes[1], name
    detector = DistortionDetector.from_pretrained(runs[1] / "sharded")
    assert_identical(detector.state_dict(), model_weights(runs[1] / "sharded"))


def test_a_killed_sharded_run_goes_on_to_the_same_end(runs, fork_server, tmp_path):
    config = Experiment.from_dict({**runs[0].to_dict(), "runs": str(tmp_path), "experiment_name": "killed"})
    config.save(tmp_path / "config.yaml")
    arguments = [str(tmp_path / "config.yaml"), "update 11"]
    children = fork_server.start_ranks("killing", "train_until", arguments, tmp_path)
    assert ended(children) == [-signal.SIGKILL] * 2, logs(children)
    assert not (config.folder / "model").exists()
    children = fork_server.start_ranks("lib.train.loop", "main", [arguments[:1]], tmp_path)
    assert ended(children) == [0, 0] and "Going on from" in logs(children), logs(children)
    for name in ("model", "best"):
        assert_identical(model_weights(config.folder, name), model_weights(runs[1] / "sharded", name))


@pytest.mark.parametrize("before", RUNS)
def test_a_run_may_go_on_in_the_other_layout(runs, before, fork_server, tmp_path):
    """From a checkpoint in the middle of the main stage, written by the one and read by the other."""
    shutil.copytree(runs[1] / before, tmp_path / before)
    for late in ("finished.json", "model", "checkpoints/step_00000012"):
        path = tmp_path / before / late
        path.unlink() if path.is_file() else shutil.rmtree(path)
    layout = "" if before == "sharded" else str(SHIPPED)
    changes = {"runs": str(tmp_path), "experiment_name": before, "accelerate_config": layout}
    Experiment.from_dict({**runs[0].to_dict(), **changes}).save(tmp_path / "config.yaml")
    children = fork_server.start_ranks("lib.train.loop", "main", [[str(tmp_path / "config.yaml")]], tmp_path)
    assert ended(children) == [0, 0] and "Going on from" in logs(children), logs(children)
    assert ("sharded over" in logs(children)) == bool(layout)
    assert_like_ddp(tmp_path / before, runs[1] / "ddp")


TORCHRUN = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=pair"]
ACCELERATE = ["accelerate.commands.launch", "--config_file", str(SHIPPED), "--num_processes=2", "--num_machines=2"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_nodes_shard(runs, launcher, tmp_path):
    """Two launchers on the loopback, one process each, as on two machines that share the folder."""
    config = Experiment.from_dict({**runs[0].to_dict(), "runs": str(tmp_path), "experiment_name": "nodes"})
    config.save(tmp_path / "config.yaml")
    port = free_port()
    address = ["--main_process_ip=127.0.0.1", f"--main_process_port={port}"]
    command = {
        "torchrun": lambda node: [*TORCHRUN, f"--rdzv-endpoint=127.0.0.1:{port}"],
        "accelerate": lambda node: [*ACCELERATE, f"--machine_rank={node}", *address],
    }[launcher]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", *command(node), "-m", "lib.train", str(tmp_path / "config.yaml")],
            env=environment,
        )
        for node in (0, 1)
    ]
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    assert_like_ddp(config.folder, runs[1] / "ddp")


# The file


def file(tmp_path, **changes) -> str:
    """A file as `accelerate config` leaves it, with changes; those of fsdp_... go into its section, None removes."""
    values = {
        "compute_environment": "LOCAL_MACHINE", "debug": False, "distributed_type": "FSDP", "downcast_bf16": "no",
        "enable_cpu_affinity": False, "machine_rank": 0, "main_training_function": "main", "mixed_precision": False,
        "num_machines": 1, "num_processes": 2, "rdzv_backend": "static", "same_network": True, "tpu_env": [],
        "tpu_use_cluster": False, "tpu_use_sudo": False, "use_cpu": False,
    }  # fmt: skip
    fsdp = {**FSDP, "fsdp_offload_params": False, "fsdp_state_dict_type": "FULL_STATE_DICT"}
    fsdp |= {key: value for key, value in changes.items() if key.startswith("fsdp_") and key != "fsdp_config"}
    values |= {"fsdp_config": {key: value for key, value in fsdp.items() if value is not None}}
    values |= {key: value for key, value in changes.items() if key not in fsdp}
    (tmp_path / "fsdp.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return str(tmp_path / "fsdp.yaml")


def test_the_layout_is_read_from_the_file(experiment, tmp_path):
    assert read_layout(experiment(), "no") is None
    config = experiment(num_processes=2, accelerate_config=file(tmp_path))
    assert read_layout(config, "no") == Layout((), False)
    shipped = experiment(num_processes=8, accelerate_config=str(SHIPPED))
    assert read_layout(shipped, "bf16") == Layout(("Florence2VisionBlock", "BartEncoderLayer"), True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"distributed_type": "DEEPSPEED"}, r"fsdp.yaml asks for distributed_type: DEEPSPEED; only FSDP of version 2"),
        ({"distributed_type": None}, "asks for distributed_type: None"),
        ({"fsdp_version": 1}, "fsdp_version: 1 is not supported: set 2"),
        ({"fsdp_version": None}, "fsdp_version: 1 is not supported: set 2"),
        ({"fsdp_offload_params": True, "fsdp_state_dict_type": "SHARDED_STATE_DICT"},
         "fsdp_offload_params: True is not supported: set false; fsdp_state_dict_type: .* set FULL_STATE_DICT"),
        ({"fsdp_use_orig_params": True}, "fsdp_use_orig_params is not supported: remove it"),
        ({"megatron_lm_config": {"tp": 2}}, "megatron_lm_config is not supported"),
        ({"parallelism_config": {"tp_size": 2}}, "parallelism_config is not supported"),
        ({"num_processes": 4}, "num_processes is 4 there and 2 in the run: make them equal or delete the line"),
        ({"mixed_precision": "bf16"}, "mixed_precision is bf16 there and no in the run"),
        ({"num_machines": 2}, "num_machines: 2 is not supported: set 1"),
        ({"fsdp_auto_wrap_policy": "SIZE_BASED_WRAP"}, "fsdp_auto_wrap_policy is SIZE_BASED_WRAP .* use TRANSFORMER"),
        ({"fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}, "with the layers ''; use TRANSFORMER_BASED_WRAP with"),
        ({"fsdp_reshard_after_forward": "FULL_SHARD"}, "'FULL_SHARD' must be true or false"),
        ({"fsdp_config": 3}, "fsdp_config: 3 must hold"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_followed_is_refused(experiment, tmp_path, changes, told):
    with pytest.raises(InputError, match=told):
        read_layout(experiment(num_processes=2, accelerate_config=file(tmp_path, **changes)), "no")


def test_a_file_that_cannot_be_read_is_refused(experiment, tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [")
    for name, told in (("none.yaml", "none.yaml does not exist"), ("bad.yaml", "bad.yaml is not valid YAML")):
        with pytest.raises(InputError, match=told):
            read_layout(experiment(num_processes=2, accelerate_config=str(tmp_path / name)), "no")


def test_one_process_cannot_shard(experiment):
    config = experiment(accelerate_config=str(SHIPPED))
    with pytest.raises(InputError, match="raise num_processes or leave it empty"):
        launch(config)
    assert not config.folder.exists()


def test_a_wrong_file_is_told_before_the_run_begins(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(launch_module, "_run_child", lambda *_: pytest.fail("started children"))
    config = experiment(num_processes=2, accelerate_config=file(tmp_path, num_processes=4))
    with pytest.raises(InputError, match="num_processes is 4 there"):
        launch(config)
    assert not config.folder.exists()


def test_another_number_of_processes_is_refused(experiment):
    with pytest.raises(InputError, match="num_processes: 2, but 1 were started"):
        make_accelerator(experiment(num_processes=2, accelerate_config=str(SHIPPED)))


def test_accelerate_launch_alone_does_not_shard(experiment, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="name its file in the parameter accelerate_config"):
        make_accelerator(experiment(num_processes=2))
