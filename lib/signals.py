"""Signals that ask a process to stop: it remembers them, saves, and ends with a sentence."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

# What schedulers, a closed terminal and a limit of CPU time send, beside Ctrl-C.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU)
SAME_REQUEST = 3.0  # seconds: torchrun and some schedulers send a stop signal twice
STOPPED = "Stopped; the same command goes on where it was."


class Interrupted(KeyboardInterrupt):
    """A stop signal came: the run was saved and can go on."""

    def _render_traceback_(self):
        # As in InputError: a notebook shows the sentence only.
        return [str(self)]


@contextlib.contextmanager
def handled_by(handler) -> Iterator[None]:
    """Within the block `handler` gets the stop signals that are not ignored (nohup ignores SIGHUP).

    Outside the main thread, where Python allows no handlers, signals stay as they are.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


class StopRequest(contextlib.ExitStack):
    """Context in which stop signals are remembered instead of ending the process; true once one came.

    A second signal some seconds later raises KeyboardInterrupt. Outside the main thread signals stay as they are.

    Args:
        first: called at the first signal with its number; it must not print, since it may interrupt a print.
    """

    def __init__(self, first: Callable[[int], None] = lambda number: None):
        super().__init__()
        self.first, self.name, self.since = first, "", 0.0

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self):
        self.enter_context(handled_by(self._received))
        return self

    def _received(self, number: int, _frame) -> None:
        if not self.name:
            self.name, self.since = signal.Signals(number).name, time.monotonic()
            self.first(number)
        elif time.monotonic() - self.since > SAME_REQUEST:
            raise KeyboardInterrupt
