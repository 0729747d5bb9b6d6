"""Ranks whose notebook is killed save and end."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from test_distributed import RECIPE

from lib.train.checkpoints import latest_checkpoint, read_state
from lib.train.orphans import LAUNCHER

WAIT = "import time; from lib.train.orphans import end_with_launcher; end_with_launcher(); print('up', flush=True)\n" \
    "time.sleep(60); print('nobody reads this')"  # fmt: skip
CHATTER = "import sys, time; from lib.train.orphans import end_with_launcher; end_with_launcher()\n" \
    "while True: print('step', flush=True); print('warning', file=sys.stderr); time.sleep(0.01)"  # fmt: skip
NOTEBOOK = "import sys; from lib.config import Experiment; from lib.train.launch import launch\n" \
    "launch(Experiment.from_yaml(sys.argv[1]))"  # fmt: skip


@pytest.mark.parametrize("reaped", [True, False])
def test_a_rank_gets_a_stop_signal_when_its_launcher_is_gone(reaped):
    launcher = subprocess.Popen(["sleep", "60"])
    environment = {**os.environ, LAUNCHER: str(launcher.pid)}
    rank = subprocess.Popen([sys.executable, "-c", WAIT], env=environment, stdout=subprocess.PIPE, text=True)
    assert rank.stdout.readline() == "up\n"
    launcher.kill()
    if reaped:  # else it is a zombie
        launcher.wait()
    assert rank.wait(timeout=30) == -signal.SIGTERM
    launcher.wait()


def test_a_rank_that_prints_into_a_broken_pipe_still_gets_the_signal():
    launcher = subprocess.Popen(["sleep", "60"])
    environment = {**os.environ, LAUNCHER: str(launcher.pid)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    rank = subprocess.Popen([sys.executable, "-c", CHATTER], env=environment, text=True, **streams)
    assert rank.stdout.readline() == "step\n"
    assert rank.stderr.readline() == "warning\n"
    rank.stdout.close()
    rank.stderr.close()
    time.sleep(0.5)
    assert rank.poll() is None
    launcher.kill()
    launcher.wait()
    assert rank.wait(timeout=30) == -signal.SIGTERM


def test_a_rank_whose_launcher_never_was_stops_and_one_without_goes_on():
    gone = subprocess.Popen(["true"])
    gone.wait()
    code = "import time; from lib.train.orphans import end_with_launcher; end_with_launcher(); time.sleep(1)"
    for environment, expected in (({LAUNCHER: str(gone.pid)}, -signal.SIGTERM), ({}, 0)):
        assert subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}).returncode == expected


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
    assert read_state(latest_checkpoint(config.folder / "checkpoints"))["step"] >= 10
