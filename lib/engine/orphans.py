"""Ranks whose launcher was killed: they save and end instead of training on unseen."""

import contextlib
import os
import signal
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
        threading.Thread(target=_stop_after, args=(int(os.environ[LAUNCHER]),), daemon=True).start()


def _stop_after(launcher: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(launcher)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(LOOK)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # nobody reads the pipe any more, and writing into it would be an error
        os.dup2(nowhere, stream)
    os.kill(os.getpid(), signal.SIGTERM)
