"""Two gloo processes on the CPU do what one would, and their troubles are told."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from fork_server import free_port
from ranks import case_name, step_gradients
from safetensors.torch import load_file
from watching import assert_identical, model_weights

from lib.config import Experiment
from lib.data.splits import hold_out
from lib.model.detector import DistortionDetector
from lib.signals import Interrupted
from lib.train import launch, processes, read_metrics
from lib.train.accelerator import make_accelerator
from lib.train.checkpoint import latest_checkpoint, read_state
from lib.train.processes import run_in_processes

# 21 training images. Of 2 x 2 a step the last step has one: the second rank has none.
RECIPE = {"val_split": 3, "batch_size": 2, "batch_size_warmup": 2, "num_processes": 2, "epoch": 1, "val_iter": -1}
# 23 images. Of 2 x 2 x 2 a step the last one has seven: 4 and 3, of which the second rank has 2 and 1. (Two rows in a
# BatchNorm would leave gradients that are nothing but rounding.)
SEVEN = {"val_split": 1}
CASES = [
    ("warmup", 1, 5, {}), ("main", 1, 5, {}),
    ("main", 2, 2, SEVEN), ("main", 2, 2, {"score_loss": "mse", **SEVEN}),
    ("main", 1, 0, {"score_head": "linear2_cls", "mask_head": "concat_cls"}),
    ("main", 1, 5, {"mask_head": "last", "lora_rank": 2, "lora_dropout": 0.0}),
]  # fmt: skip


@pytest.fixture(scope="module")
def two_ranks(micro_experiment, still_checkpoint, fork_server, tmp_path_factory):
    """(config, folder with what two processes left)"""
    folder = tmp_path_factory.mktemp("ranks")
    config = micro_experiment(folder / "runs", checkpoint=str(still_checkpoint), **RECIPE)
    config.save(folder / "config.yaml")
    arguments = [str(folder / "config.yaml"), CASES, str(folder)]
    children = fork_server.start_ranks("ranks", "everything", arguments, folder)
    codes = [child.wait() for child in children]
    assert codes == [0, 0], "\n".join(child.log.read_text() for child in children)
    return config, folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case_name(*case))
def test_two_ranks_have_the_gradients_of_one(two_ranks, case):
    config, folder = two_ranks
    stage, accumulate, step, changes = case
    one = {"num_processes": 1, "batch_size": 4, "batch_size_warmup": 4, "accumulate_step": accumulate, **changes}
    config = Experiment.from_dict({**config.to_dict(), **one})
    alone = step_gradients(config, make_accelerator(config), stage, step, double=True)
    together = load_file(folder / f"{case_name(*case)}.safetensors")
    assert together.keys() == alone.keys()
    assert any(name.startswith("encoder.") for name in alone) == (stage == "main")
    gradients = [value for name, value in alone.items() if not re.search("running|tracked|losses", name)]
    assert max(float(gradient.abs().max()) for gradient in gradients) > 1e-2
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_a_whole_run_ends_with_the_weights_of_one_process(two_ranks, micro_experiment, tmp_path):
    config, folder = two_ranks
    changes = {"runs": str(tmp_path), "num_processes": 1, "batch_size": 4, "batch_size_warmup": 4, "val_iter": 1}
    alone = launch(Experiment.from_dict({**config.to_dict(), **changes}))
    together = folder / "runs" / "trained"
    held_out = [json.loads((run / "held_out.json").read_text()) for run in (together, alone)]
    assert held_out[0] == held_out[1] == hold_out(config.data_path, 3, config.seed)
    rows, expected = ([row for row in read_metrics(run) if "loss" in row] for run in (together, alone))
    assert [row["step"] for row in rows] == list(range(1, 13))
    for name in ("loss", "mask_loss", "score_loss", "lr"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in expected], abs=2e-4)
    assert sum("val_final_score" in row for row in read_metrics(together)) == 2
    weights, alone = model_weights(together), model_weights(alone)
    start = DistortionDetector.from_checkpoint(config).state_dict()
    # Adam makes the rounding of tiny gradients as large as any other, so single weights may differ; the way does not.
    moved, apart = (
        torch.cat([(a[n] - b[n]).double().flatten() for n in alone if "num" not in n]).norm()
        for a, b in ((alone, start), (weights, alone))
    )
    assert apart < 0.02 * moved, (apart, moved)


# The launcher


def breaking(how: str, monkeypatch):
    """The launcher starts tests/ranks.py instead of lib.train."""
    torchrun = processes.torchrun

    def command(*arguments):
        start = torchrun(*arguments)
        program = str(Path(__file__).parent / "ranks.py")
        return [*start[: start.index("-m", 3)], program, "training_that_breaks", start[-1], how]

    monkeypatch.setattr(processes, "torchrun", command)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("raise", r"a process ended: (\[rank1\]: )?ZeroDivisionError: rank 1 has divided by zero"),
        pytest.param("kill", r"a process ended: Signal 9 \(SIGKILL\)", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_ends_ends_the_others(experiment, still_checkpoint, monkeypatch, capfd, how, cause):
    breaking(how, monkeypatch)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=f"^{cause}"):
        launch(experiment(checkpoint=str(still_checkpoint), **RECIPE))
    printed = capfd.readouterr().out
    assert "step 2/12" in printed and "step 3/12" not in printed and time.monotonic() - began < 300


@pytest.mark.slow
@pytest.mark.ci
def test_an_interrupt_in_the_notebook_reaches_the_ranks_which_save(two_ranks, monkeypatch, capfd, tmp_path):
    """Interrupted in the middle of an epoch, run again: bit-identical to the two processes that were left alone."""
    folder = two_ranks[1]
    config = Experiment.from_yaml(folder / "runs" / "trained" / "config.yaml")
    config = Experiment.from_dict({**config.to_dict(), "runs": str(tmp_path), "experiment_name": "launched"})

    def interrupt():
        while len(read_metrics(config.folder)) < 8:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with monkeypatch.context() as patch:
        breaking("wait", patch)
        with pytest.raises(Interrupted, match="Stopped; the same command goes on"):
            launch(config)
    thread.join()
    assert "and saved; the same command goes on from here" in capfd.readouterr().out
    stopped = int(latest_checkpoint(config.folder).name.removeprefix("step_"))
    assert 6 < stopped < 10
    assert_identical(model_weights(launch(config)), model_weights(folder / "runs" / "trained"))
    assert "Going on from" in capfd.readouterr().out


def test_the_documented_command_waits_as_long():
    readme = (Path(__file__).parents[1] / "data_cards/recipes.md").read_text(encoding="utf-8")
    [command] = [line for line in readme.splitlines() if line.startswith("torchrun ")]
    assert processes.PATIENCE in command.split()


def test_a_second_interrupt_ends_ranks_that_do_not_listen(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setattr("lib.signals.SAME_REQUEST", 0.0)
    started, printed = [], []

    def interrupt_twice():
        while "".join(printed).count("up") < 2:
            printed.append(capfd.readouterr().out)
            time.sleep(0.05)
        started.extend(p for p in psutil.Process().children(recursive=True) if "deaf_rank" in p.cmdline())
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    thread = threading.Thread(target=interrupt_twice)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_in_processes("deaf_rank", tmp_path, 2)
    thread.join()
    assert len(started) == 3  # torchrun and two ranks
    assert not psutil.wait_procs(started, timeout=60)[1]


@pytest.mark.slow
def test_a_killed_notebook_leaves_a_checkpoint_and_no_process(experiment, still_checkpoint, tmp_path):
    config = experiment(checkpoint=str(still_checkpoint), **{**RECIPE, "epoch": 500, "save_iter": -1, "log_iter": 10})
    config.save(tmp_path / "config.yaml")
    cell = "import sys; from lib.config import Experiment; from lib.train import launch; "
    cell += "launch(Experiment.from_yaml(sys.argv[1]))"
    notebook = psutil.Popen([sys.executable, "-c", cell, str(tmp_path / "config.yaml")], stdout=subprocess.PIPE)
    while b"step 10/" not in notebook.stdout.readline():
        assert notebook.poll() is None
    started = notebook.children(recursive=True)
    assert len(started) >= 3  # torchrun and two ranks
    time.sleep(0.5)
    notebook.kill()
    assert not psutil.wait_procs(started, timeout=60)[1]
    assert read_state(latest_checkpoint(config.folder))["step"] >= 10


@pytest.mark.slow
def test_two_nodes_meet_at_a_rendezvous(two_ranks, tmp_path):
    """Two launchers on the loopback, one process each, as on two machines that share the folder."""
    folder = two_ranks[1]
    config = Experiment.from_yaml(folder / "runs" / "trained" / "config.yaml")
    config = Experiment.from_dict({**config.to_dict(), "runs": str(tmp_path / "runs")})
    config.save(tmp_path / "config.yaml")
    endpoint = f"127.0.0.1:{free_port()}"
    start = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    start += ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=pair"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [*start, "-m", "lib.train", str(tmp_path / "config.yaml")]
    nodes = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    assert_identical(model_weights(tmp_path / "runs" / "trained"), model_weights(folder / "runs" / "trained"))
