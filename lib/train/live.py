"""A training's progress in JupyterLab: one display that grows; elsewhere the lines of the Tracker as they are.

The display is fed by what every training gives away, wherever it runs: the rows of `metrics.jsonl`. Of the lines that
the cell prints those that record a step are left out, all others appear below the display as ever.

Jupyter cannot bring a display back when its page was closed or loaded anew, nor show what papermill trains elsewhere:
`watch` begins a new one for any run, without a hand in its training.
"""

import contextlib
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from IPython.display import display

from lib.config import Experiment
from lib.errors import InputError
from lib.train.live_html import Progress, render
from lib.train.run_folder import LOCK, is_being_trained
from lib.train.signals import StopRequest
from lib.train.tracking import read_metrics
from lib.workspace import in_jupyterlab

PERIOD = 1.0  # seconds between updates
# What `Tracker.log` prints, but for skipped steps: those are a warning and stay a line.
RECORD = re.compile(r"step \d+/\d+  \w+ epoch \d+  (?!skipped ).*  [\d:]+ left")


@contextlib.contextmanager
def live_view(config: Experiment) -> Iterator[None]:
    """Within the block the training of `config` is shown live when this is JupyterLab; elsewhere nothing changes."""
    if not in_jupyterlab():
        yield
        return
    with View(config) as view, Lines(sys.stdout, view.record) as lines, contextlib.redirect_stdout(lines):
        yield


def watch(run, patience: float = 60) -> None:
    """Show a run that is trained elsewhere until it is trained: live in JupyterLab, line by line elsewhere.

    The stop button ends the watching only; so do `patience` seconds in which nobody trains the run. Raises InputError
    when `run` is no run's folder.
    """
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        known = sorted(path.parent.as_posix() for path in folder.parent.glob("*/config.yaml"))
        hint = f"there are {', '.join(known)}" if known else "train one first"
        raise InputError(f"there is no run {run}; {hint}")
    with contextlib.suppress(KeyboardInterrupt):
        Watch(Experiment.from_yaml(folder / "config.yaml"), folder).to_the_end(patience)


class Shown:
    """What a run's folder tells of its progress, as a bundle that Jupyter displays."""

    def __init__(self, config: Experiment, folder: Path | None = None):
        self.folder, self.evaluates = folder or config.folder, config.val_iter > 0
        epochs = {"warmup": config.warmup_epoch, "main": config.epoch}
        self.progress = Progress(self.folder.name, epochs=epochs)
        self.rows, self.version = [], None
        self.begun = self.written = time.time()  # of this display; of the newest row

    def bundle(self) -> dict[str, str]:
        """The display as HTML, and as one line for what shows no HTML."""
        self._read()
        progress, running = self.progress, self.progress.state in ("training", "stopping")
        progress.elapsed, progress.left = 0.0 if progress.state == "resting" else time.time() - self.begun, None
        if self.rows and progress.state != "starting":
            later = max(0.0, time.time() - self.written) if running else 0.0
            progress.elapsed = self.rows[-1]["seconds"] + later
            if running and "left" in self.rows[-1]:  # an older version did not write it
                progress.left = max(0.0, self.rows[-1]["left"] - later)
        return {"text/html": render(progress, self.rows, self.evaluates), "text/plain": str(progress)}

    def _read(self) -> None:
        """Read the rows when there are other ones."""
        path = self.folder / "metrics.jsonl"
        status = path.stat() if path.is_file() else None
        if status and self.version != (status.st_size, status.st_mtime):
            self.rows, self.version = read_metrics(self.folder), (status.st_size, status.st_mtime)
            self.written = status.st_mtime
        if self.rows:
            last, progress = self.rows[-1], self.progress
            progress.step, progress.stage, progress.epoch = last["step"], last["stage"], last["epoch"]
            progress.total = last.get("total", 0)


class View(Shown):
    """One display of the training in this cell, drawn by a thread of its own so that the training never waits."""

    def __init__(self, config: Experiment):
        super().__init__(config)
        self.ended = threading.Event()

    def __enter__(self):
        self.handle = display(self.bundle(), raw=True, display_id=True)
        self.thread = threading.Thread(target=self._draw_on, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.ended.set()
        self.thread.join()
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.progress.state = "stopped" if stopped else "failed" if kind else "finished"
        self.handle.update(self.bundle(), raw=True)

    def record(self, line: str) -> bool:
        """Whether a printed line records a step, which need not be printed too."""
        found = bool(RECORD.fullmatch(line))
        if found:
            self.progress.state = "training"
        return found

    def _draw_on(self) -> None:
        while not self.ended.wait(PERIOD):
            if StopRequest.requested:
                self.progress.state = "stopping"
            self.handle.update(self.bundle(), raw=True)


class Watch(Shown):
    """A run that another process trains."""

    def to_the_end(self, patience: float) -> None:
        """Show it until it is trained, or nobody has trained it for some seconds."""
        told, handle, alive = ("", 0), None, time.monotonic()
        while True:
            self.progress.state = state = self._state()
            shown, now = self.bundle(), (state, len(self.rows))
            if handle:
                handle.update(shown, raw=True)
            elif in_jupyterlab():
                handle = display(shown, raw=True, display_id=True)
            elif now != told:
                print(shown["text/plain"], flush=True)
            told, alive = now, alive if state == "resting" else time.monotonic()
            if state == "finished" or time.monotonic() - alive >= patience:
                return
            time.sleep(PERIOD)

    def _state(self) -> str:
        self._read()
        if (self.folder / "finished.json").is_file():
            return "finished"
        if not is_being_trained(self.folder):
            return "resting"
        # Rows of an earlier process say nothing about this one.
        return "training" if self.rows and self.written >= (self.folder / LOCK).stat().st_mtime else "starting"


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
