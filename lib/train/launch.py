"""Start a training from a notebook: in this process, or as several that stream their progress here."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import torch

from lib.config import Experiment
from lib.errors import InputError
from lib.train.fsdp import read_layout
from lib.train.loop import train
from lib.train.orphans import LAUNCHER
from lib.train.run_folder import open_folder, read_splits
from lib.train.runtime import precision
from lib.train.signals import Interrupted, StopRequest

SHOWN = 100  # lines of a failed child that are shown again
# Of torchrun when it is signalled itself; without it ranks have 30 seconds to save. Those that wait for one that failed
# have 30 seconds in any case.
PATIENCE = "--shutdown-timeout=3600"


def launch(config: Experiment) -> Path:
    """Train with `config.num_processes` processes and return the run's folder.

    More than one process run under torchrun as a child: nothing forks a kernel that has touched CUDA. SIGINT and
    SIGTERM are passed on to the processes, which save and end; then Interrupted is raised. What a process found wrong
    with the input is raised as InputError, any other failure as RuntimeError with the child's traceback.
    """
    config = config.resolved()  # the name may hold a date: all processes and all days of a run agree on one
    if config.num_processes == 1:
        try:
            return train(config)
        except KeyboardInterrupt as stopped:  # also while it loads, or at a second signal
            raise Interrupted(str(stopped) or "Stopped; the same call goes on from the newest checkpoint.") from None
    _refuse_more_than_gpus(config.num_processes)
    if config.accelerate_config:  # else this process need not look at a GPU, which would take memory there
        read_layout(config, precision(config))  # a wrong file is told before the run's folder is begun
    folder = open_folder(config)
    with tempfile.TemporaryDirectory() as scratch:
        config.save(Path(scratch) / "config.yaml")
        _run_until_it_fits(_torchrun("lib.train", Path(scratch) / "config.yaml", config.num_processes), folder)
    if not (folder / "finished.json").is_file():
        raise Interrupted(f"{config.name} was stopped; the same command goes on from its newest checkpoint.")
    return folder


def run_in_processes(module: str, argument: Path, processes: int) -> None:
    """Run `python -m module argument` in several processes that know of each other; their lines appear here.

    Raises as `launch` does: InputError, RuntimeError, and Interrupted after a signal.
    """
    _refuse_more_than_gpus(processes)
    if not _run_child(_torchrun(module, argument, processes)):
        raise Interrupted("Stopped; the same call goes on where it was.")


def _refuse_more_than_gpus(processes: int) -> None:
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and gpus < processes:
        raise InputError(f"num_processes: {processes}, but this machine has {gpus} GPUs; lower it")


def _torchrun(module: str, argument: Path, processes: int) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", PATIENCE, f"--nproc-per-node={processes}"]
    return [*start, "-m", module, str(argument)]


def _run_until_it_fits(command: list[str], folder: Path) -> None:
    """Run the child, again whenever it has found that its micro-batches must be smaller."""
    while True:
        splits = read_splits(folder)
        try:
            _run_child(command)
            return
        except (InputError, RuntimeError) as error:
            if read_splits(folder) == splits:
                raise
            print(f"{error}; starting again.", flush=True)


def _run_child(command: list[str]) -> bool:
    """Whether the child came to its end; False after a signal, which is passed on to its processes."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", LAUNCHER: str(os.getpid())}
    if not torch.cuda.is_available():
        environment |= {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1")}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    failure, wrong_input = [], ""
    try:
        with StopRequest(lambda number: _stop_ranks(child.pid)) as stop:
            for line in child.stdout:
                if failure or "Traceback (most recent call last)" in line:
                    failure.append(line)
                if line.startswith("error: "):
                    wrong_input = wrong_input or line.removeprefix("error: ").strip()
                if not wrong_input:  # what torchrun adds to it is of no use to the reader
                    print(line, end="", flush=True)
            child.wait()
    finally:
        if child.poll() is None:  # interrupted twice
            _kill(child)
    if child.returncode and not stop:
        if wrong_input:
            raise InputError(wrong_input)
        told = "".join(failure[:SHOWN])  # the first traceback is the cause, later ones are what follows from it
        raise RuntimeError(f"{_cause(''.join(failure))}\n{told}")
    return not stop


def _cause(told: str) -> str:
    """The one line for a log: the signal that torchrun found to have ended a process, else the first exception."""
    if killed := re.search(r"Root Cause.*?exitcode\s*: -(\d+)", told, re.DOTALL):
        why = ", probably out of memory" if int(killed[1]) == signal.SIGKILL else ""
        return f"a process was ended by {signal.Signals(int(killed[1])).name}{why}"
    error = re.search(r"^(?:\[rank\d+\]: ?)?([\w.]*(?:Error|Exception)\b.*)", told, re.MULTILINE)
    return f"a process ended: {error[1] if error else 'it gave no reason'}"


def _stop_ranks(torchrun: int) -> None:
    """Ask the processes, not torchrun, which would end with a traceback of its own."""
    ranks = psutil.Process(torchrun).children() or [psutil.Process(torchrun)]
    for process in ranks:
        process.send_signal(signal.SIGTERM)


def _kill(torchrun: subprocess.Popen) -> None:
    """End the ranks, which torchrun has put into sessions of their own, and their data workers; then torchrun."""
    for process in psutil.Process(torchrun.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    torchrun.kill()
    torchrun.wait()
