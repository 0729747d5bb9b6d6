"""Ranks whose notebook is killed save and end."""

import signal
import subprocess
import sys
import time

import psutil
import pytest
from test_distributed import RECIPE

from lib.train.checkpoint import latest_checkpoint, read_state
from lib.train.processes import LAUNCHER

NOTEBOOK = "import sys; from lib.config import Experiment; from lib.train import launch\n" \
    "launch(Experiment.from_yaml(sys.argv[1]))"  # fmt: skip


@pytest.mark.parametrize("moment", ["alive", "zombie", "gone"])
def test_a_rank_gets_a_stop_signal_when_its_launcher_is_gone(fork_server, tmp_path, moment):
    launcher = subprocess.Popen(["sleep", "60"])
    if moment == "gone":
        launcher.kill()
        launcher.wait()
    rank = fork_server.start("killing", "wait_as_a_rank", [], tmp_path / "log", **{LAUNCHER: str(launcher.pid)})
    launcher.kill()
    if moment == "alive":  # else it stays a zombie
        launcher.wait()
    assert rank.wait(30) == -signal.SIGTERM
    launcher.wait()


def test_a_process_without_a_launcher_goes_on(fork_server, tmp_path):
    assert fork_server.start("killing", "wait_as_a_rank", [1], tmp_path / "log").wait(30) == 0


@pytest.mark.slow
def test_a_killed_notebook_leaves_a_checkpoint_and_no_process(experiment, still_checkpoint, tmp_path):
    config = experiment(checkpoint=str(still_checkpoint), **{**RECIPE, "epoch": 500, "save_iter": -1, "log_iter": 10})
    config.save(tmp_path / "config.yaml")
    notebook = psutil.Popen([sys.executable, "-c", NOTEBOOK, str(tmp_path / "config.yaml")], stdout=subprocess.PIPE)
    while b"step 10/" not in notebook.stdout.readline():
        assert notebook.poll() is None
    started = notebook.children(recursive=True)
    assert len(started) >= 3  # torchrun and two ranks
    time.sleep(0.5)
    notebook.kill()
    assert not psutil.wait_procs(started, timeout=60)[1]
    assert read_state(latest_checkpoint(config.folder))["step"] >= 10
