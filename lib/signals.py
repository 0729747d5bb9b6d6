"""Signals that ask a process to stop: it remembers them, saves, and ends with a sentence."""

import signal
import threading
import time
from collections.abc import Callable

SAME_REQUEST = 3.0  # seconds: torchrun and some schedulers send a stop signal twice


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGINT: the run was saved and can go on."""

    def _render_traceback_(self):
        # As in InputError: a notebook shows the sentence only.
        return [str(self)]


class StopRequest:
    """Context in which SIGTERM and SIGINT are remembered instead of ending the process; true once one came.

    A second signal some seconds later raises KeyboardInterrupt. Outside the main thread signals stay as they are.

    Args:
        first: called at the first signal with its number; it must not print, since it may interrupt a print.
    """

    def __init__(self, first: Callable[[int], None] = lambda number: None):
        self.first, self.name, self.since, self.before = first, "", 0.0, {}

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.before = {n: signal.signal(n, self._received) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _received(self, number: int, _frame) -> None:
        if not self.name:
            self.name, self.since = signal.Signals(number).name, time.monotonic()
            self.first(number)
        elif time.monotonic() - self.since > SAME_REQUEST:
            raise KeyboardInterrupt
