"""Signals that stop a training: it hears them, saves, and ends with a sentence."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

SAME_REQUEST = 3.0  # seconds: torchrun and some schedulers send a stop signal twice


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGINT: the run was saved and can go on."""

    def _render_traceback_(self):
        # As in InputError: in a notebook the sentence is the whole story.
        return [str(self)]


class StopRequest:
    """Context in which SIGTERM and SIGINT are remembered instead of ending the process; true once one came.

    A second signal some seconds later raises KeyboardInterrupt. Outside the main thread signals stay as they are.

    Args:
        first: called at the first signal with its number; it must not print, since it may interrupt a print.
    """

    requested = ""  # of the class: the signal that an open context has received, for whoever shows the progress

    def __init__(self, first: Callable[[int], None] = lambda number: None):
        self.first, self.name, self.since, self.before = first, "", 0.0, {}

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.before = {n: signal.signal(n, self._received) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        StopRequest.requested = ""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _received(self, number: int, _frame) -> None:
        if not self.name:
            self.name, self.since = signal.Signals(number).name, time.monotonic()
            StopRequest.requested = self.name
            self.first(number)
        elif time.monotonic() - self.since > SAME_REQUEST:
            raise KeyboardInterrupt


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Context in which SIGTERM and SIGINT raise Interrupted in the first process: nothing is to be saved yet.

    Other ranks keep the system's answer: they may wait for the first one in a call during which no handler runs.
    """
    with StopRequest(_end) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
        yield


def _end(number: int) -> None:
    name = signal.Signals(number).name
    raise Interrupted(f"{name}: stopped; the same command goes on, from the newest checkpoint if there is one.")
