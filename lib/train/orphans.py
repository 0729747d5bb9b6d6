"""Ranks whose launcher was killed: they save and end instead of training on unseen."""

import contextlib
import io
import os
import signal
import sys
import threading
import time

import psutil

LAUNCHER = "NITRE_LAUNCHER_PID"  # environment of ranks whose output another process shows
LOOK = 0.5  # seconds between two looks


def end_with_launcher() -> None:
    """From now on, when the launcher is gone, stop as after SIGTERM; nothing happens in a process without one.

    A notebook's kernel that is killed cannot tell its ranks. They would train on until they print, fail at that, and
    lose what they did since the last checkpoint.
    """
    if LAUNCHER in os.environ:
        sys.stdout, sys.stderr = (_forgiving(stream) for stream in (sys.stdout, sys.stderr))
        threading.Thread(target=_stop_after, args=(int(os.environ[LAUNCHER]),), daemon=True).start()


def _stop_after(launcher: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(launcher)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)


class _Pipe(io.FileIO):
    """A pipe that may be written to when nobody reads it any more: a line is not worth a training."""

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def _forgiving(stream: io.TextIOBase) -> io.TextIOBase:
    """The same output through a `_Pipe`."""
    stream.flush()
    pipe = io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(pipe, stream.encoding, stream.errors, line_buffering=True)
