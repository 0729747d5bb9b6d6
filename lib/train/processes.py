"""Start a training from a notebook: in this process, or in several under torchrun that stream their progress here."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from lib.config import Experiment
from lib.errors import InputError
from lib.signals import STOP_SIGNALS, STOPPED, Interrupted, StopRequest
from lib.train.checkpoint import FINISHED, opened_folder
from lib.train.log import showing_rows
from lib.train.loop import train

# Without it torchrun gives ranks 30 seconds to save when it is signalled itself.
PATIENCE = "--shutdown-timeout=3600"
SHOWN = 100  # lines of a failed process that are repeated in the error
# Why a process failed: what torchrun says of one that was killed, else the last line of the first traceback.
KILLED, ERROR = r"Signal \d+ \(SIG(?!TERM).*", r"(?m)^(\[rank\d+\]: ?)?[\w.]*(Error|Exception)\b.*"


def launch(config: Experiment, on_rows: Callable[[list[dict]], None] | None = None) -> Path:
    """Train with `config.num_processes` processes and return the run's folder.

    SIGINT and SIGTERM let the processes save and end; then Interrupted is raised, and the same call goes on from there.

    Args:
        on_rows: called in this process with all rows of metrics.jsonl (see `read_metrics`) as they grow, at most about
            once a second, and at the end.
    Raises InputError for what a process found wrong with the input, RuntimeError with a process's traceback else.
    """
    config = config.resolved()  # the name may hold a date: all processes and all days of a run agree on one
    show = showing_rows(config.folder, on_rows)
    try:
        if config.num_processes == 1:
            train(config, show)
        else:
            with opened_folder(config) as folder:  # wrong parameters are refused before any process starts
                pass
            run_in_processes("lib.train", folder / "config.yaml", config.num_processes, show)
    except KeyboardInterrupt as stopped:  # also while it loads, or at a second signal
        if not (config.folder / FINISHED).is_file():  # else the signal came after the last step
            show(at_once=True)
            raise Interrupted(str(stopped) or STOPPED) from None
    show(at_once=True)
    return config.folder


def run_in_processes(
    module: str, argument: Path, processes: int, on_line: Callable[[], None] = lambda: None
) -> None:  # fmt: skip
    """Run `python -m module argument` under torchrun in several processes; their lines are printed here.

    torchrun is a child: nothing forks a kernel that has touched CUDA. SIGINT and SIGTERM are passed on.

    Args:
        on_line: called after every line.
    Raises Interrupted after a signal, InputError with what a process found wrong with the input, RuntimeError with a
    process's traceback for any other failure.
    """
    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        gpus = torch.cuda.device_count()
        raise InputError(f"num_processes: {processes}, but this machine has {gpus} GPUs; lower it")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(number.name for number in STOP_SIGNALS)
    if not torch.cuda.is_available():
        environment |= {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1")}
    child = subprocess.Popen(
        torchrun(module, argument, processes), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip
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
                on_line()
            child.wait()
    finally:
        if child.poll() is None:  # interrupted twice, or `on_line` has failed
            _kill(child)
    if stop:
        raise Interrupted(STOPPED)
    if wrong_input and child.returncode:
        raise InputError(wrong_input)
    if child.returncode:  # the first traceback is the cause, later ones follow from it
        text = "".join(failure)
        cause = re.search(KILLED, text) or re.search(ERROR, text)
        raise RuntimeError(f"a process ended: {cause and cause[0]}\n{''.join(failure[:SHOWN])}")


def torchrun(module: str, argument: Path, processes: int) -> list[str]:
    """The command that runs `python -m module argument` in several processes of this machine."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", PATIENCE, f"--nproc-per-node={processes}"]
    return [*start, "-m", module, str(argument)]


def _stop_ranks(torchrun: int) -> None:
    """Ask the processes, not torchrun, which would end with a traceback of its own."""
    for process in psutil.Process(torchrun).children() or [psutil.Process(torchrun)]:
        process.send_signal(signal.SIGTERM)


def _kill(torchrun: subprocess.Popen) -> None:
    """End the ranks, which torchrun has put into sessions of their own, and their data workers; then torchrun."""
    for process in psutil.Process(torchrun.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    torchrun.kill()
    torchrun.wait()
