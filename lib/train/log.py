"""What a run records while it trains: `metrics.jsonl`, printed lines, TensorBoard and Weights & Biases."""

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker, WandBTracker

from lib.config import Experiment
from lib.errors import InputError
from lib.files import write_text
from lib.records import read_metrics

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
        self.total, self.started, self.before = total, time.monotonic(), 0.0
        if accelerator.is_main_process:
            kept = [row for row in read_metrics(config.folder) if row["step"] <= first]
            self.before = max((row["seconds"] for row in kept), default=0.0)
            _start_trackers(config, accelerator, first)
            write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))

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
        left = self.seconds / step * (self.total - step)
        row = {"step": step, "stage": stage, "epoch": epoch, **values}
        row |= {"seconds": round(self.seconds, 2), "left": round(left, 2), "total": self.total}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        numbers = {f"train/{k}".replace("train/val_", "val/"): v for k, v in values.items() if not isinstance(v, str)}
        self.accelerator.log(numbers, step=step)
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        self.say(f"step {step}/{self.total}  {stage} epoch {epoch}  {shown}  {timedelta(seconds=round(left))} left")
        self.on_record()

    def say(self, line: str) -> None:
        """Print a line; when its reader is gone (a killed notebook), all ranks stop as after a signal."""
        if self.accelerator.is_main_process:
            try:
                print(line, flush=True)
            except BrokenPipeError:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the lines to come)
                os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        """Write what the trackers hold back."""
        for tracker in self.accelerator.trackers:  # `end_training` would end the process group, too
            tracker.finish()


def _start_trackers(config: Experiment, accelerator: Accelerator, first: int) -> None:
    """TensorBoard, and Weights & Biases when it is asked for: a resumed training goes on with the run's id there."""
    accelerator.log_with = [TensorBoardTracker("tensorboard", config.folder, purge_step=first + 1)]
    if config.wandb:
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "300")  # seconds; by itself wandb waits for ever for its upload
        id = config.folder / "wandb_id"
        if not id.is_file():
            id.write_text(uuid.uuid4().hex[:16])
        run = {"name": config.name, "id": id.read_text(), "resume": "allow", "dir": str(config.folder)}
        accelerator.log_with.append(WandBTracker(config.wandb, config=config.to_dict(), **run))
    try:
        accelerator.init_trackers("")
    except Exception as error:
        if not config.wandb:
            raise
        raise InputError(
            f"wandb: {config.wandb!r} cannot be reported to ({error}); run `pip install wandb` and `wandb login`, set "
            "WANDB_MODE=offline, or leave the parameter empty to report to TensorBoard only"
        ) from None


def showing_rows(folder: Path, on_rows: Callable[[list[dict]], None] | None) -> Callable[..., None]:
    """A function that gives a run's rows to `on_rows`, at most about once a second unless it is asked `at_once`.

    It takes at most a tenth of the time: what draws slowly is called less often.
    """
    due = 0.0

    def show(at_once: bool = False) -> None:
        nonlocal due
        began = time.monotonic()
        if on_rows and (began >= due or at_once):
            on_rows(read_metrics(folder))
            due = time.monotonic() + max(PERIOD, 9 * (time.monotonic() - began))

    return show
