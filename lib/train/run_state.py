"""What a run has reached and must not lose: weights, averages, optimizer, step, best figure."""

import contextlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast_object_list
from torch import nn

from lib.config import Experiment
from lib.data.dataset import DistortionData
from lib.errors import InputError
from lib.files import replacing
from lib.model.detector import DistortionDetector, load_weights, own_weights, set_trainable
from lib.train import checkpoints
from lib.train.ema import Ema
from lib.train.fsdp import copy_whole, read_layout, shard, whole_on_first
from lib.train.resuming import circumstances, refuse_others
from lib.train.runtime import precision, trained_share
from lib.train.schedule import Stage
from lib.versions import versions


class RunState:
    """The detector of a run and how far it got: as new, or as the newest whole checkpoint has it.

    Random numbers, learning rates and the place in the data are functions of `step`; they need no saving.
    """

    def __init__(self, config: Experiment, accelerator: Accelerator, data: DistortionData):
        self.config, self.accelerator, self.folder = config, accelerator, config.folder
        layout = read_layout(config, precision(config))
        self.checkpoint = self._newest_checkpoint()
        with accelerator.local_main_process_first():  # one process downloads, the others find it in the cache
            self.detector = DistortionDetector.from_checkpoint(config).to(accelerator.device)
        self.circumstances = circumstances(data, accelerator.mixed_precision, self.detector.base)
        if self.checkpoint:
            refuse_others(self.checkpoint, self.circumstances, config.checkpoint)
        set_trainable(self.detector, "main")
        self.step, self.best = 0, -math.inf
        self.unevaluated = False  # at `step` an evaluation is due that the checkpoint was not to wait for
        if self.checkpoint:
            self._load_weights()
        self.plain = None  # of a sharded run: a whole detector on the CPU, for what is done with whole weights
        if layout:
            self.plain = DistortionDetector.from_checkpoint(config)
            shard(self.detector, layout)
        self.ema = Ema(self.detector, config.ema_decay) if config.ema else None
        if self.checkpoint:
            self._load_rest()

    def _newest_checkpoint(self) -> Path | None:
        main = self.accelerator.is_main_process
        found = [checkpoints.latest_checkpoint(self.folder / "checkpoints") if main else None]
        broadcast_object_list(found)
        if found[0] and not found[0].is_dir():
            raise InputError(f"{found[0]} is not visible to every process; runs must be a folder that all nodes share")
        return found[0]

    def _load_weights(self) -> None:
        weights = checkpoints.read_group(self.checkpoint, "model")
        load_weights(self.detector, weights, self.checkpoint, partial="encoder." if self.config.lora_rank else "")

    def _load_rest(self) -> None:
        state = checkpoints.read_state(self.checkpoint)
        if self.ema:
            self.ema.load(checkpoints.read_group(self.checkpoint, "ema"))
        if state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.unevaluated = state["step"], state["best"], state.get("unevaluated", False)

    def prepare(self, optimizer: torch.optim.Optimizer, stage: Stage) -> tuple[nn.Module, AcceleratedOptimizer]:
        """Detector and a stage's new optimizer for the steps; the latter with its state in the checkpoint, if any."""
        # A checkpoint at the end of a stage holds that stage's optimizer; the next stage starts its own.
        if self.checkpoint and self.step > stage.first:
            checkpoints.load_optimizer_tensors(optimizer, checkpoints.read_group(self.checkpoint, "optimizer"))
        self.checkpoint = None
        # Where torch keeps the optimizer's state: on a GPU its counters would make every step wait for each of them.
        optimizer = self.accelerator.prepare_optimizer(optimizer, device_placement=False)
        if self.plain:  # a sharded detector sends what is to be sent by itself
            return self.detector, optimizer
        return self.accelerator.prepare(self.detector), optimizer

    def save(self, optimizer: torch.optim.Optimizer, unevaluated: bool = False) -> None:
        """Write a checkpoint; all ranks must call it.

        `unevaluated`: an evaluation of it follows, whose end is told by `note_evaluated`.
        """
        self.unevaluated = unevaluated
        tensors = {"model": own_weights(self.detector), "optimizer": checkpoints.optimizer_tensors(optimizer)}
        if self.ema:
            tensors["ema"] = self.ema.weights
        tensors = {group: whole_on_first(values) for group, values in tensors.items()}
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
            # While training goes on there is always one to fall back to.
            keep = max(2, self.config.keep_checkpoints)
            state = {"best": self.best, "unevaluated": unevaluated, "scaler": scaler, **self.circumstances}
            checkpoints.save_checkpoint(self.folder / "checkpoints", self.step, tensors, state, keep)
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def final_detector(self) -> Iterator[DistortionDetector]:
        """Context with the detector that is evaluated and given away: whole, with the averages when there are any.

        All ranks must enter it.
        """
        if self.plain:
            copy_whole(self.ema.weights if self.ema else own_weights(self.detector), self.plain)
            yield self.plain.to(self.accelerator.device)
            self.plain.to("cpu")
        else:
            with self.ema.swapped_in(self.detector) if self.ema else contextlib.nullcontext():
                yield self.detector

    def note_best(self, detector: DistortionDetector, figure: float) -> None:
        """Keep the detector as `best/` when no evaluation before gave a higher figure."""
        if figure > self.best:
            self.best = figure
            self._save_model("best", detector)

    def note_evaluated(self) -> None:
        """Tell the checkpoint that waits for its evaluation what came of it, if there is such a one."""
        if self.unevaluated and self.accelerator.is_main_process:
            values = {"best": self.best, "unevaluated": False}
            checkpoints.amend_state(self.folder / "checkpoints", self.step, values)
        self.unevaluated = False

    def finish(self, images: int, seconds: float) -> None:
        """Write the model, then the note that the run is complete, and only then drop what could resume it.

        All ranks must call it.
        """
        with self.final_detector() as detector:
            if not self.accelerator.is_main_process:
                return
            self._save_model("model", detector)
        summary = {"steps": self.step, "seconds": round(seconds, 1), "images": images, **trained_share(self.detector)}
        summary["versions"] = versions()
        with replacing(self.folder / "finished.json") as part:
            part.write_text(json.dumps(summary, indent=1))
        tidy(self.config)

    def _save_model(self, name: str, detector: DistortionDetector) -> None:
        with checkpoints.written_aside(self.folder / name) as part:
            detector.save_pretrained(part)


def tidy(config: Experiment) -> None:
    """Leave of a finished run what `keep_checkpoints` says; 0 is the final model only. Safe to repeat."""
    checkpoints.prune(config.folder / "checkpoints", config.keep_checkpoints)
    if config.keep_checkpoints == 0:
        for scratch in ("best", "predictions/validation"):
            shutil.rmtree(config.folder / scratch, ignore_errors=True)
