"""Processes for tests that kill them, forked from one that has imported torch already, which takes seconds."""

import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


class Child:
    """A started process with a session of its own, as if started by hand; its output is in `log`."""

    def __init__(self, process, log: Path):
        self.process, self.pid, self.log = process, process.pid, log

    def wait(self, seconds: float = 240) -> int:
        """Exit code, negative for a signal; a process that hangs is killed and fails the test."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"not ended after {seconds} s:\n{self.log.read_text()}")
        return self.process.exitcode

    def kill(self, number: int = signal.SIGKILL) -> int:
        os.kill(self.pid, number)
        return self.wait()

    def wait_until(self, happened, seconds: float = 60) -> None:
        """Wait for `happened()`; fail when it does not come."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"nothing happened in {seconds} s:\n{self.log.read_text()}"
            time.sleep(0.002)


class ForkServer:
    def __init__(self):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["lib.train"])

    def start(self, module: str, function: str, args: list, log: Path, **environment) -> Child:
        """Run `module.function(*args)`; its result is the exit code."""
        process = self.context.Process(target=_run, args=(module, function, args, log, environment))
        process.start()
        return Child(process, log)

    def start_ranks(self, module: str, function: str, args: list, folder: Path, world: int = 2) -> list[Child]:
        """So many processes on the CPU that find each other, as under torchrun; what they print is `log_<rank>`."""
        common = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "ACCELERATE_USE_CPU": "1"}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "TORCHELASTIC_RUN_ID": "test"}
        return [
            self.start(module, function, args, folder / f"log_{n}", RANK=str(n), LOCAL_RANK=str(n), **common)
            for n in range(world)
        ]


def _run(module: str, function: str, args: list, log: Path, environment: dict) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    sys.exit(getattr(importlib.import_module(module), function)(*args))
