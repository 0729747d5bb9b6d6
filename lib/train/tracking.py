"""What a run tells while it trains: `metrics.jsonl`, TensorBoard, and one line every few steps with the time left.

Weights & Biases is told the same when the parameter `wandb` asks for it.
"""

import json
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from lib.config import Experiment
from lib.files import replacing
from lib.train.weights_and_biases import WandbRun


class Tracker:
    """Writes the records of one run; only rank 0 has an active one.

    Args:
        folder: the run's folder.
        total_steps: of all stages, for the estimate of the time left.
        first_step: where this process starts; later records of an earlier, killed process are dropped.
        config: of the run; its `wandb` names a project to report to. None: only what is written here.
        again: an evaluation at `first_step` is made again; what is recorded of it is dropped.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        first_step: int,
        active: bool = True,
        config: Experiment | None = None,
        again: bool = False,
    ):
        self.folder, self.total, self.first, self.active = Path(folder), total_steps, first_step, active
        self.step = first_step
        self.wandb = WandbRun(self.folder, config) if active and config and config.wandb else None
        self.started, self.before = time.monotonic(), 0.0
        if active:
            kept = [row for row in read_metrics(folder) if row["step"] <= first_step]
            kept = [row for row in kept if not (again and row["step"] == first_step and _is_evaluation(row))]
            self.before = max((row["seconds"] for row in kept), default=0.0)
            with replacing(self.folder / "metrics.jsonl") as part:
                part.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            self.board = SummaryWriter(self.folder / "tensorboard", purge_step=first_step + 1)

    @property
    def seconds(self) -> float:
        """Time spent on the run so far, that of earlier processes included as far as they recorded it."""
        return self.before + time.monotonic() - self.started

    def log(self, step: int, stage: str, epoch: int, **values) -> None:
        """Record values after `step` optimizer steps and print them as one line.

        Numbers named `val_*` appear under val/ in TensorBoard, others under train/; anything but numbers does not.
        """
        if not self.active:
            return
        self.step = step
        if step > self.first:
            pace = (time.monotonic() - self.started) / (step - self.first)
        else:  # an evaluation made again: the pace is that of the earlier processes
            pace = self.before / max(step, 1)
        left = pace * (self.total - step)
        row = {"step": step, "stage": stage, "epoch": epoch, **values}
        row |= {"seconds": round(self.seconds, 2), "left": round(left, 2), "total": self.total}
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        numbers = {_tag(name): value for name, value in values.items() if isinstance(value, int | float)}
        for tag, value in numbers.items():
            self.board.add_scalar(tag, value, step)
        if self.wandb:
            self.wandb.log(step, numbers)
        shown = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        print(f"step {step}/{self.total}  {stage} epoch {epoch}  {shown}  {clock(left)} left", flush=True)

    def close(self) -> None:
        """Flush what TensorBoard and Weights & Biases hold back."""
        if self.active:
            self.board.close()
        if self.wandb:
            self.wandb.finish(complete=self.step == self.total)


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


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _is_evaluation(row: dict) -> bool:
    return any(name.startswith("val_") for name in row)


def _tag(name: str) -> str:
    return f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}"


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
