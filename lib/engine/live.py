"""A training's progress in JupyterLab: one display that grows; elsewhere the lines of the Tracker as they are.

The display is fed by what every training gives away, in this process or from several: the rows of `metrics.jsonl`
and the printed lines. Lines that record a step go into the display, all others appear below it as ever.
"""

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator

from IPython import get_ipython
from IPython.display import display

from lib.config import Experiment
from lib.engine.live_html import Progress, render
from lib.engine.runtime import StopRequest
from lib.engine.tracking import read_metrics

PERIOD = 1.0  # seconds between updates
# What `Tracker.log` prints, but for skipped steps: those are a warning and stay a line.
RECORD = re.compile(r"step (\d+)/(\d+)  (\w+) epoch (\d+)  (?!skipped ).*  ([\d:]+) left")


def in_jupyterlab() -> bool:
    """Whether a Jupyter server started this kernel; papermill and nbclient do not name a session."""
    return "JPY_SESSION_NAME" in os.environ and hasattr(get_ipython(), "kernel")


@contextlib.contextmanager
def live_view(config: Experiment) -> Iterator[None]:
    """Within the block the training of `config` is shown live when this is JupyterLab; elsewhere nothing changes."""
    if not in_jupyterlab():
        yield
        return
    with View(config) as view, Lines(sys.stdout, view.record) as lines, contextlib.redirect_stdout(lines):
        yield


class View:
    """One display of a run's progress, drawn by a thread of its own so that the training never waits for it."""

    def __init__(self, config: Experiment):
        self.folder, self.evaluates = config.folder, config.val_iter > 0
        epochs = {"warmup": config.warmup_epoch, "main": config.epoch}
        self.progress = Progress(config.name, epochs=epochs)
        self.rows, self.size = [], -1
        self.told = time.monotonic()  # when the newest record came
        self.left: float | None = None  # seconds, as the newest record says
        self.ended = threading.Event()

    def __enter__(self):
        self.handle = display(self.bundle(), raw=True, display_id=True)
        self.thread = threading.Thread(target=self._draw_on, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.ended.set()
        self.thread.join()
        self.left = None
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.progress.state = "stopped" if stopped else "failed" if kind else "finished"
        self.handle.update(self.bundle(), raw=True)

    def record(self, line: str) -> bool:
        """Take a printed line; True when it records a step, which need not be printed too."""
        found = RECORD.fullmatch(line)
        if found:
            step, total, stage, epoch, left = found.groups()
            progress = self.progress
            progress.step, progress.total, progress.stage, progress.epoch = int(step), int(total), stage, int(epoch)
            progress.state, self.left, self.told = "training", _seconds(left), time.monotonic()
        return bool(found)

    def bundle(self) -> dict[str, str]:
        """The display as HTML, and as one line for what shows no HTML."""
        self._read()
        progress, since = self.progress, time.monotonic() - self.told
        recorded = self.rows[-1]["seconds"] if self.rows else 0.0
        if progress.state == "starting":
            progress.elapsed = since
        else:
            progress.elapsed = recorded if self.ended.is_set() else recorded + since
        progress.left = None if self.left is None else max(0.0, self.left - since)
        if StopRequest.requested:
            progress.state = "stopping"
        return {"text/html": render(progress, self.rows, self.evaluates), "text/plain": str(progress)}

    def _read(self) -> None:
        """Read the rows when there are new ones; when nothing is printed the last one tells how far the run is."""
        path = self.folder / "metrics.jsonl"
        size = path.stat().st_size if path.is_file() else 0
        if size != self.size:
            self.rows, self.size = read_metrics(self.folder), size
        if self.rows and self.left is None:
            last, progress = self.rows[-1], self.progress
            progress.step, progress.stage, progress.epoch = last["step"], last["stage"], last["epoch"]
            if (self.folder / "finished.json").is_file():
                progress.total = last["step"]

    def _draw_on(self) -> None:
        while not self.ended.wait(PERIOD):
            self.handle.update(self.bundle(), raw=True)


class Lines:
    """Stands in for sys.stdout: the whole lines that `take` wants are its own, all others pass."""

    def __init__(self, out, take):
        self.out, self.take, self.rest = out, take, ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.out.write(self.rest)

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if not self.take(line):
                self.out.write(line + "\n")
        return len(text)

    def __getattr__(self, name):
        return getattr(self.out, name)


def _seconds(told: str) -> int:
    """The inverse of `lib.engine.tracking.clock`."""
    return sum(int(part) * 60**power for power, part in enumerate(reversed(told.split(":"))))
