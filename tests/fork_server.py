"""Processes for tests that kill them: forked from one that has imported torch already, which takes seconds each time.

`ForkServer().start("module", "function", args)` is a process of its own with its own session, as if started by hand.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


class Child:
    """A started process; its output is in `log`."""

    def __init__(self, server, pid: int, log: Path):
        self.server, self.pid, self.log = server, pid, log

    def wait(self, seconds: float = 240) -> int:
        """Exit code, negative for a signal; a process that hangs is killed and fails the test."""
        deadline = time.monotonic() + seconds
        while (code := self.server.ask({"wait": self.pid})) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"not ended after {seconds} s:\n{self.log.read_text()}")
            time.sleep(0.01)
        return code

    def kill(self, number: int = signal.SIGKILL) -> int:
        os.kill(self.pid, number)
        return self.wait()

    def wait_until(self, happened, seconds: float = 60) -> None:
        """Wait for `happened()`; fail when it does not come or the process ends before."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"nothing happened in {seconds} s:\n{self.log.read_text()}"
            time.sleep(0.002)


class ForkServer:
    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, module: str, function: str, args: list, log: Path, **environment) -> Child:
        """Run `module.function(*args)`; its result is the exit code."""
        request = {"module": module, "function": function, "args": args, "log": str(log), "environment": environment}
        return Child(self, self.ask(request), log)

    def start_ranks(self, module: str, function: str, args: list, folder: Path, world: int = 2) -> list[Child]:
        """So many processes on the CPU that find each other, as under torchrun; what they print is `log_<rank>`."""
        common = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "ACCELERATE_USE_CPU": "1"}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "TORCHELASTIC_RUN_ID": "test"}
        return [
            self.start(module, function, args, folder / f"log_{n}", RANK=str(n), LOCAL_RANK=str(n), **common)
            for n in range(world)
        ]

    def ask(self, request: dict) -> int | None:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def _serve() -> None:
    import lib.train  # noqa: F401 (the point of it all)

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                os._exit(_child(request))
        print(json.dumps(answer), flush=True)


def _child(request: dict) -> int:
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["environment"])
    try:
        code = getattr(importlib.import_module(request["module"]), request["function"])(*request["args"])
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0


if __name__ == "__main__":
    _serve()
