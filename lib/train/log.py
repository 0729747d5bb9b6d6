"""What a run records while it trains: `metrics.jsonl`, printed lines, TensorBoard and Weights & Biases."""

import contextlib
import importlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker, WandBTracker

from lib.config import Experiment
from lib.distributed import clock
from lib.errors import InputError
from lib.files import replacing
from lib.train.checkpoint import is_being_trained

PERIOD = 1.0  # seconds between two looks at a run's rows


class Log:
    """The records of one run, which its first process writes.

    Args:
        total: optimizer steps of all stages, for the estimate of the time left.
        first: step from which this process goes on; what a killed process recorded after it is dropped.
        on_record: called after every record.
    Raises InputError when Weights & Biases is asked for and cannot be reported to.
    """

    def __init__(
        self, config: Experiment, accelerator: Accelerator, total: int, first: int,
        on_record: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        self.path, self.accelerator, self.on_record = config.folder / "metrics.jsonl", accelerator, on_record
        self.total, self.first, self.started, self.before = total, first, time.monotonic(), 0.0
        if accelerator.is_main_process:
            kept = [row for row in read_metrics(config.folder) if row["step"] <= first]
            self.before = max((row["seconds"] for row in kept), default=0.0)
            _start_trackers(config, accelerator, first)
            with replacing(self.path) as part:
                part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")

    @property
    def seconds(self) -> float:
        """Time spent on the run so far, that of earlier processes included as far as they recorded it."""
        return self.before + time.monotonic() - self.started

    def record(self, step: int, stage: str, epoch: int, **values) -> None:
        """Record values after `step` optimizer steps and print them as one line.

        Numbers appear in the trackers as well: those named `val_*` under val/, others under train/.
        """
        if not self.accelerator.is_main_process:
            return
        taken, steps = (self.seconds - self.before, step - self.first) if step > self.first else (self.before, step)
        left = taken / max(steps, 1) * (self.total - step)
        row = {"step": step, "stage": stage, "epoch": epoch, **values}
        row |= {"seconds": round(self.seconds, 2), "left": round(left, 2), "total": self.total}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        numbers = {_tag(name): value for name, value in values.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=step)
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        self.say(f"step {step}/{self.total}  {stage} epoch {epoch}  {shown}  {clock(left)} left")
        self.on_record()

    def say(self, line: str) -> None:
        """Print a line; when its reader is gone (a killed notebook), the training goes on."""
        if self.accelerator.is_main_process:
            with contextlib.suppress(BrokenPipeError):
                print(line, flush=True)

    def close(self) -> None:
        """Write what the trackers hold back."""
        for tracker in self.accelerator.trackers:  # `end_training` would end the process group, too
            tracker.finish()


def _tag(name: str) -> str:
    return f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}"


def _start_trackers(config: Experiment, accelerator: Accelerator, first: int) -> None:
    accelerator.log_with = [TensorBoardTracker("tensorboard", config.folder, purge_step=first + 1)]
    if not config.wandb:
        accelerator.init_trackers("")
        return
    try:
        importlib.import_module("wandb").init  # noqa: B018 (a folder `wandb` imports as an empty package)
    except (ImportError, AttributeError):
        raise InputError(
            f"wandb: {config.wandb!r} needs the package wandb; run `pip install wandb`, or leave the parameter empty "
            "to report to TensorBoard only"
        ) from None
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "300")  # seconds; by itself wandb waits for ever for its upload
    accelerator.log_with.append(
        WandBTracker(
            config.wandb,
            name=config.name,
            id=_wandb_id(config.folder),
            resume="allow",
            dir=str(config.folder),
            config=config.to_dict(),
        )  # fmt: skip
    )
    try:
        accelerator.init_trackers("")
    except Exception as error:
        raise InputError(
            f"wandb: {config.wandb!r} cannot be reported to ({error}); run `wandb login`, set WANDB_MODE=offline, or "
            "leave the parameter empty"
        ) from None


def _wandb_id(folder: Path) -> str:
    """The id of the run at Weights & Biases, kept in the run's folder: a resumed training goes on with it."""
    path = folder / "wandb_id"
    if not path.is_file():
        with replacing(path) as part:
            part.write_text(uuid.uuid4().hex[:16])
    return path.read_text()


def read_metrics(folder) -> list[dict]:
    """The rows of a run's `metrics.jsonl`; a half-written last line (a killed run) does not count.

    Beside its values a row has `step` of `total` optimizer steps, `stage` and `epoch`, and the `seconds` that the run
    has taken and has `left`.
    """
    path = Path(folder) / "metrics.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class RowsShown:
    """Callable that gives a run's rows to `on_rows` when some were added, at most about once a second.

    It takes at most a tenth of the time: what draws slowly is called less often.
    """

    def __init__(self, folder: Path, on_rows: Callable[[list[dict]], None] | None):
        self.folder, self.on_rows, self.shown, self.next = folder, on_rows, 0, 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self.next:
            self.now()

    def now(self) -> None:
        """Show the rows as they are, if there are other ones than were shown last."""
        if self.on_rows is None:
            return
        began, rows = time.monotonic(), read_metrics(self.folder)
        if len(rows) != self.shown:
            self.shown = len(rows)
            self.on_rows(rows)
        self.next = time.monotonic() + max(PERIOD, 9 * (time.monotonic() - began))


def follow(run, patience: float = 60) -> Iterator[list[dict]]:
    """Yield all rows of a run that is trained elsewhere, again whenever some were added, until its training ends.

    It also ends when nobody has trained the run for `patience` seconds. Raises InputError when `run` is no run.
    """
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        known = sorted(path.parent.as_posix() for path in folder.parent.glob("*/config.yaml"))
        hint = f"there are {', '.join(known)}" if known else "train one first"
        raise InputError(f"there is no run {run}; {hint}")
    shown, alive = 0, time.monotonic()
    while True:
        finished = (folder / "finished.json").is_file()  # before the rows are read: none comes after it
        rows = read_metrics(folder)
        if len(rows) != shown:
            shown = len(rows)
            yield rows
        if is_being_trained(folder):
            alive = time.monotonic()
        if finished or time.monotonic() - alive >= patience:
            return
        time.sleep(PERIOD)
