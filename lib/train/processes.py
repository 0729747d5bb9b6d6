"""Processes: what each trains on, several of them under torchrun, and those whose launcher is gone."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType

from lib.config import Experiment
from lib.distributed import precision
from lib.errors import InputError
from lib.signals import Interrupted, StopRequest

STOPPED = "Stopped; the same command goes on from the newest checkpoint."
LAUNCHER = "NITRE_LAUNCHER_PID"  # environment of ranks whose output another process shows
# Without it torchrun gives ranks 30 seconds to save when it is signalled itself.
PATIENCE = "--shutdown-timeout=3600"
KNOWN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
SHOWN = 100  # lines of a failed process that are repeated in the error


def make_accelerator(config: Experiment) -> Accelerator:
    """Device, precision and processes.

    Raises InputError when another number of processes was started than the recipe counts on, since that would change
    its batch, or when they were told to do anything but DDP.
    """
    wanted = precision(config)
    # Accelerate keeps the first precision of a process for ever; a notebook may train twice.
    AcceleratorState._reset_state()
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # no second copy of all gradients
    accelerator = Accelerator(mixed_precision=wanted, cpu=not torch.cuda.is_available(), kwargs_handlers=[ddp])
    if accelerator.distributed_type not in KNOWN:
        raise InputError(f"{accelerator.distributed_type.value} is not supported, only DDP; start with torchrun")
    if accelerator.num_processes != config.num_processes:
        raise InputError(
            f"num_processes: {config.num_processes}, but {accelerator.num_processes} were started; start as many with "
            "lib.train.launch or torchrun (of all nodes together), or correct the parameter"
        )
    return accelerator


def refuse_more_than_gpus(processes: int) -> None:
    """Raise InputError when this machine has GPUs, but fewer than processes are to be started."""
    gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and gpus < processes:
        raise InputError(f"num_processes: {processes}, but this machine has {gpus} GPUs; lower it")


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
    refuse_more_than_gpus(processes)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", LAUNCHER: str(os.getpid())}
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
        raise Interrupted("Stopped; the same call goes on where it was.")
    if wrong_input and child.returncode:
        raise InputError(wrong_input)
    if child.returncode:  # the first traceback is the cause, later ones follow from it
        raise RuntimeError(f"{_cause(''.join(failure))}\n{''.join(failure[:SHOWN])}")


def torchrun(module: str, argument: Path, processes: int) -> list[str]:
    """The command that runs `python -m module argument` in several processes of this machine."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", PATIENCE, f"--nproc-per-node={processes}"]
    return [*start, "-m", module, str(argument)]


def _cause(failure: str) -> str:
    """One line for a log: the signal that torchrun found to have ended a process, else the first exception."""
    if killed := re.search(r"Root Cause.*?exitcode\s*: -(\d+)", failure, re.DOTALL):
        why = ", probably out of memory" if int(killed[1]) == signal.SIGKILL else ""
        return f"a process was ended by {signal.Signals(int(killed[1])).name}{why}"
    error = re.search(r"^(?:\[rank\d+\]: ?)?([\w.]*(?:Error|Exception)\b.*)", failure, re.MULTILINE)
    return f"a process ended: {error[1] if error else 'it gave no reason'}"


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


def end_with_launcher() -> None:
    """From now on stop as after SIGTERM when the launcher is gone; nothing happens in a process without one.

    A notebook's kernel that is killed cannot tell its ranks, which would train on unseen.
    """
    if LAUNCHER in os.environ:
        threading.Thread(target=_stop_after, args=(int(os.environ[LAUNCHER]),), daemon=True).start()


def _stop_after(launcher: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(launcher)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
