"""Start a training from a notebook: in this process, or as several that stream their progress here."""

import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path

import torch

from lib.config import Experiment
from lib.errors import InputError


def launch(config: Experiment) -> Path:
    """Train with `config.num_processes` processes and return the run's folder.

    More than one process run under torchrun as a child: nothing forks a kernel that has touched CUDA, and an
    interrupt in Lab reaches the child, which saves and exits. Raises RuntimeError with the last lines of a child
    that failed.
    """
    from lib.training import train

    if config.num_processes == 1:
        return train(config)
    if torch.cuda.is_available() and torch.cuda.device_count() < config.num_processes:
        raise InputError(f"num_processes: {config.num_processes}, but this machine has {torch.cuda.device_count()} GPUs; lower it")
    # The name may hold today's date: it is settled here, so that all processes and a resume tomorrow agree.
    config = Experiment.from_dict({**config.to_dict(), "experiment_name": config.name})
    with tempfile.TemporaryDirectory() as scratch:
        config.save(Path(scratch) / "config.yaml")
        _run_child(_command(config.num_processes, Path(scratch) / "config.yaml"))
    return config.folder


def _command(processes: int, config_path: Path) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*torchrun, "-m", "lib.training", str(config_path)]


def _run_child(command: list[str]) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if not torch.cuda.is_available():
        environment |= {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1")}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    tail = deque(maxlen=30)
    try:
        for line in child.stdout:
            tail.append(line)
            print(line, end="", flush=True)
    except KeyboardInterrupt:
        os.killpg(child.pid, signal.SIGINT)
        for line in child.stdout:
            print(line, end="", flush=True)
        child.wait()
        raise
    if child.wait():
        raise RuntimeError(f"training ended with exit code {child.returncode}; its last lines:\n{''.join(tail)}")
