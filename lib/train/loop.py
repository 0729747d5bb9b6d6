"""`train(config)`: the only training loop, for full fine-tuning and LoRA, one process or many."""

import contextlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from lib.config import Experiment
from lib.data.dataset import make_loader, training_data
from lib.data.splits import record_held_out, validation_source
from lib.distributed import rank
from lib.errors import InputError
from lib.files import full_disk_told, replacing
from lib.metrics import best_threshold, score_table, sweep, threshold_curve
from lib.model.detector import DistortionDetector, load_weights, own_weights, set_trainable
from lib.predict.prediction import predict
from lib.signals import Interrupted, StopRequest
from lib.train import checkpoint as files
from lib.train.log import Log, read_metrics
from lib.train.processes import make_accelerator
from lib.train.schedule import Stage, make_optimizer, plan_stages, trained_share
from lib.train.step import GlobalStep, norm_state, restore_norms
from lib.versions import versions

MOST_LOSSES = 10  # steps in a row whose loss is not finite, before `nonfinite: skip` gives up
MOST_OVERFLOWS = 30  # steps in a row that the loss scaler skips: its search from 65536 down to 1 takes 16
THRESHOLDS = range(10, 250, 10)  # of the evaluation while training
REPORTED = ("final_score", "f1_score", "plcc", "srcc")
OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")  # as torch and CUDA's libraries say it


def train(config: Experiment, on_record: Callable[[], None] = lambda: None) -> Path:
    """Train to the end, going on from the newest checkpoint when there is one; returns the run's folder.

    Writes config.yaml, held_out.json (with val_split), metrics.jsonl, tensorboard/, checkpoints/, best/ (when it
    evaluates) and at the end model/ and finished.json.

    Args:
        on_record: called in the first process after every record of the log.
    Raises InputError for parameters or data that cannot be used, Interrupted after a signal (saved).
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a warning at every fork of a data worker
    warnings.filterwarnings("ignore", message=r"\s*Grad strides do not match bucket view strides")  # depthwise
    with full_disk_told(config.folder, "from the newest checkpoint"), contextlib.ExitStack() as stack:
        accelerator = make_accelerator(config)
        if accelerator.is_main_process:
            stack.enter_context(files.sole_owner(files.open_folder(config)))
        accelerator.wait_for_everyone()
        if (config.folder / "finished.json").is_file():
            if accelerator.is_main_process:
                files.tidy(config)  # the run may have been killed before it could
                print(f"{config.folder} is already trained; delete it or give another experiment_name.", flush=True)
        else:
            Run(config, accelerator).to_the_end(on_record)
    return config.folder


class Run:
    """One training: the detector, how far it got, and what happens at each step.

    Random numbers, learning rates and the place in the data are functions of `step`; they need no saving.
    """

    def __init__(self, config: Experiment, accelerator: Accelerator):
        self.config, self.accelerator, self.main = config, accelerator, accelerator.is_main_process
        self.data = training_data(config)
        self.validation = validation_source(config) if config.val_iter > 0 else None
        if config.val_iter > 0 and not self.validation:
            raise InputError(
                f"val_iter is {config.val_iter}, but {config.data_path} has no labelled val split and val_split is 0; "
                "set val_split to a number of training images to hold out, or val_iter to -1"
            )
        self.stages = plan_stages(config, len(self.data), accelerator.process_index, accelerator.num_processes)
        self.total = self.stages[-1].last
        self.bad_losses = self.overflows = 0  # steps in a row that were skipped
        self._begin()
        if self.main:  # after a look at the checkpoint: of other data nothing must be recorded
            record_held_out(config)

    def _begin(self) -> None:
        """The detector as new, or as the newest checkpoint has it."""
        config, accelerator = self.config, self.accelerator
        [self.checkpoint] = broadcast_object_list([files.latest_checkpoint(config.folder) if self.main else None])
        with accelerator.local_main_process_first():  # one process downloads, the others find it in the cache
            self.detector = DistortionDetector.from_checkpoint(config).to(accelerator.device)
        self.circumstances = files.circumstances(self.data, accelerator.mixed_precision, self.detector.base)
        state = {"step": 0, "scaler": None}
        if self.checkpoint:
            files.refuse_changes(self.checkpoint, self.circumstances, config.checkpoint)
            state, weights = files.read_state(self.checkpoint), files.read_group(self.checkpoint, "model")
            load_weights(self.detector, weights, self.checkpoint, partial="encoder." if config.lora_rank else "")
        set_trainable(self.detector, "main")
        self.ema = files.Ema(self.detector, config.ema_decay) if config.ema else None
        if self.checkpoint and self.ema:
            self.ema.load(files.read_group(self.checkpoint, "ema"))
        if state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        # What was evaluated up to here stands in the log. NaN is no figure to compare with.
        rows = [r for r in read_metrics(config.folder) if r["step"] <= self.step and "val_final_score" in r]
        self.best = max((r["val_final_score"] for r in rows if not math.isnan(r["val_final_score"])), default=-math.inf)
        [self.evaluated] = broadcast_object_list([{r["step"] for r in rows}])

    def to_the_end(self, on_record: Callable[[], None] = lambda: None) -> None:
        """All stages that are left, then the final model."""
        self.log = Log(self.config, self.accelerator, self.total, self.step, on_record)
        self._announce()
        try:
            with StopRequest() as self.stop:
                for stage in self.stages:
                    # A killed or interrupted process may have saved without coming to the evaluation.
                    if stage.due(self.step, self.config.val_iter) and self.step not in self.evaluated:
                        self._evaluate(stage)
                    if self.step < stage.last:
                        self._run_stage(stage)
                self._finish()
                self.log.say(
                    f"Trained {self.step} steps in {self.log.seconds:.0f} s; the model is in "
                    f"{self.config.folder / 'model'}"
                )
        finally:
            self.log.close()

    def _run_stage(self, stage: Stage) -> None:
        set_trainable(self.detector, stage.name)
        optimizer = make_optimizer(self.detector, self.config)
        # A checkpoint at the end of a stage holds that stage's optimizer; the next stage starts its own.
        if self.checkpoint and self.step > stage.first:
            files.load_optimizer_tensors(optimizer, files.read_group(self.checkpoint, "optimizer"))
        self.checkpoint = None
        # Where torch keeps the optimizer's state: on a GPU its counters would make every step wait for each of them.
        self.optimizer = self.accelerator.prepare_optimizer(optimizer, device_placement=False)
        model = self.accelerator.prepare(self.detector)
        self.gradients = GlobalStep(self.config, self.accelerator, self.detector, model)
        window = []
        with contextlib.closing(self._batches(stage)) as steps:
            for batches in steps:
                window += self._update(stage, batches)
                self.step += 1
                if window and (self.step % self.config.log_iter == 0 or self.step == stage.last):
                    self._record_losses(stage, window)
                    window = []
                self._between_steps(stage)
        self.accelerator.free_memory()
        self.detector = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    def _batches(self, stage: Stage) -> Iterator[list[dict]]:
        """This rank's micro-batches, step by step, from where the run is to the end of the stage."""
        sampler, first, last = stage.sampler, self.step - stage.first, stage.last - stage.first
        loader = make_loader(self.data, self.detector.text, sampler.flat(first, last), self.config.num_workers)
        with contextlib.closing(loader):
            for step in range(first, last):
                yield [next(loader) for _ in sampler.micro_batches(step)]

    def _update(self, stage: Stage, batches: list[dict]) -> list[tuple[float, float]]:
        """One optimizer step; returns [(mask loss, score loss)], or [] when it was skipped."""
        for group in self.optimizer.param_groups:
            group["lr"] = stage.rate(self.step, group["base_lr"], group["floor_lr"])
        self.gradients.model.train()
        if stage.name == "warmup":
            self.detector.encoder.eval()
        norms = norm_state(self.detector)
        images = stage.sampler.images_in_step(self.step - stage.first)
        with memory_told(
            f"with {stage.sampler.batch_size} images at a time; set gradient_checkpointing: true and run again, or "
            "begin another experiment_name with a lower batch_size (batch_size_warmup) and a higher accumulate_step"
        ):
            losses = self.gradients(batches, images, (self.config.seed, self.step))
            mask, score, finite = self._agree(losses)
            if finite:
                self.optimizer.step()
        if not finite or self.optimizer.step_was_skipped:
            self._skip(stage, batches, overflow=finite)
            restore_norms(self.detector, norms)
            self.optimizer.zero_grad()
            return []
        self.optimizer.zero_grad()
        self.bad_losses = self.overflows = 0
        if self.ema:
            self.ema.update(self.detector)
        return [(mask, score)]

    def _agree(self, losses: Tensor) -> tuple[float, float, bool]:
        """Clip; (mask loss, score loss, whether all is finite) of the global batch, and whether any rank should stop.

        One reduction and one wait for the device a step: ranks must take the same decisions.
        """
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = self.accelerator.clip_grad_norm_(trained, self.config.clip_grad_norm or math.inf)
        # Under fp16 infinite gradients are part of the search for a loss scale; the scaler skips such steps itself.
        norm = torch.zeros_like(losses[0]) if self.accelerator.scaler else norm
        mine = torch.stack([*losses, norm, torch.tensor(float(bool(self.stop)), device=losses.device)])
        mask, score, norm, stop = self.accelerator.reduce(mine, "sum").tolist()
        self.stopping = stop > 0
        return mask, score, math.isfinite(mask + score + norm)

    def _skip(self, stage: Stage, batches: list[dict], overflow: bool) -> None:
        """Record a step whose loss or gradient is not finite; raises InputError when `nonfinite` or the limits say so.

        `overflow`: the loss scaler has found it and lowered its scale.
        """
        step, scaler = self.step + 1, self.accelerator.scaler
        ids = gather_object([id for batch in batches for id in batch["id"]])
        why = f"the gradients overflow, the loss scale is {scaler.get_scale():g} now" if overflow else ", ".join(ids)
        self.log.record(step, stage.name, stage.epoch(step), skipped=why)
        if overflow:
            self.overflows += 1
            # A run must not end without a single update.
            if self.overflows >= min(MOST_OVERFLOWS, self.total):
                raise not_finite("gradient", self.overflows, step, ids, can_skip=False)
            return
        self.bad_losses += 1
        stops = self.config.nonfinite == "stop"
        if stops or self.bad_losses >= MOST_LOSSES:
            raise not_finite("loss or its gradient", self.bad_losses, step, ids, can_skip=stops)
        if scaler:
            scaler.update()

    def _record_losses(self, stage: Stage, window: list[tuple[float, float]]) -> None:
        mask, score = (sum(column) / len(window) for column in zip(*window, strict=True))
        loss = self.config.mask_loss_weight * mask + self.config.score_loss_weight * score
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        values = {"loss": loss, "mask_loss": mask, "score_loss": score, "lr": rate}
        self.log.record(self.step, stage.name, stage.epoch(self.step), **values)

    def _between_steps(self, stage: Stage) -> None:
        """Save, stop and evaluate where that is due."""
        if stage.due(self.step, self.config.save_iter) or self.stopping or self.step == self.total:
            self._save()  # first, so that an evaluation that fails (an image of val, a full disk) costs no training
        if self.stopping and self.step < self.total:
            raise Interrupted(
                f"{self.stop.name or 'Another process'}: stopped at step {self.step} of {self.total} and saved; the "
                "same command goes on from here."
            )
        if stage.due(self.step, self.config.val_iter):
            self._evaluate(stage)

    def _save(self) -> None:
        """Write a checkpoint; all ranks must call it."""
        if self.main:
            groups = {"model": own_weights(self.detector)}
            groups["optimizer"] = files.optimizer_tensors(self.optimizer.optimizer)
            groups |= {"ema": self.ema.weights} if self.ema else {}
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
            keep = max(2, self.config.keep_checkpoints)  # while training goes on there is one to fall back to
            state = {"scaler": scaler, **self.circumstances}
            files.save_checkpoint(self.config.folder, self.step, groups, state, keep)
        self.accelerator.wait_for_everyone()

    def _evaluate(self, stage: Stage) -> None:
        """Figures on the held-out images into the log; the best model into best/. All ranks must call it."""
        set_trainable(self.detector, stage.name)  # on a CPU the last digits depend on it
        with self._averaged(), self.accelerator.autocast():
            with memory_told("while evaluating; lower batch_size_val and run again"):
                figures = validation_figures(self.detector, self.config, *self.validation)
            if figures and figures["final_score"] > self.best:
                self.best = figures["final_score"]
                self._save_model("best")
        if figures:  # recorded last: an evaluation that is recorded is not repeated
            values = {f"val_{name}": value for name, value in figures.items()}
            self.log.record(self.step, stage.name, stage.epoch(self.step), **values)

    def _averaged(self):
        """Context in which the detector holds what is evaluated and given away: the averages when there are any."""
        return self.ema.swapped_in(self.detector) if self.ema else contextlib.nullcontext()

    def _save_model(self, name: str) -> None:
        with files.written_aside(self.config.folder / name) as part:
            self.detector.save_pretrained(part)

    def _finish(self) -> None:
        """Write the model, then the note that the run is complete, and only then drop what could resume it."""
        if not self.main:
            return
        with self._averaged():
            self._save_model("model")
        summary = {"steps": self.step, "seconds": round(self.log.seconds, 1), "images": len(self.data)}
        summary |= {**trained_share(self.detector), "versions": versions()}
        with replacing(self.config.folder / "finished.json") as part:
            part.write_text(json.dumps(summary, indent=1))
        files.tidy(self.config)

    def _announce(self) -> None:
        share, device = trained_share(self.detector), self.accelerator.device.type
        self.log.say(
            f"{self.config.name}: {len(self.data)} images, {self.total} steps on {self.accelerator.num_processes} x "
            f"{device} in {self.accelerator.mixed_precision.replace('no', 'fp32')}; {share['trained']:,} of "
            f"{share['parameters']:,} parameters train"
        )
        if self.checkpoint:
            self.log.say(f"Going on from {self.checkpoint}.")


def validation_figures(detector: DistortionDetector, config: Experiment, store, ids: list[str]) -> dict | None:
    """Predict labelled images into the run's folder; figures at the best of a coarse grid of thresholds.

    The threshold is chosen on the same images, so these figures compare epochs of one run with each other; notebook 3
    measures a run, with the threshold of one split applied to another.
    Returns {name: value} on rank 0, None elsewhere; all ranks must call it, since they share the work.
    """
    folder = config.folder / "predictions" / "validation"
    options = {"batch_size": config.batch_size_val, "num_workers": config.num_workers, "progress": False}
    predictions = predict(detector, store, folder, ids, **options)
    if rank():
        return None
    counts = sweep(predictions, store, THRESHOLDS, ids=ids)
    curve = threshold_curve(counts, score_table(predictions, store, ids)).set_index("threshold")
    threshold = best_threshold(curve.reset_index())
    return {**{name: float(curve.at[threshold, name]) for name in REPORTED}, "threshold": threshold}


@contextlib.contextmanager
def memory_told(remedy: str) -> Iterator[None]:
    """Raise an InputError with the remedy where memory runs out in the block; other errors pass."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; CUDA's libraries raise others
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        raise InputError(f"out of memory {remedy}") from None


def not_finite(what: str, times: int, step: int, ids: list[str], can_skip: bool) -> InputError:
    """The error that ends a run whose loss or gradient is not finite; it names the images and the remedies."""
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more, all in metrics.jsonl" if len(ids) > 8 else "")
    again = f" {times} times in a row" if times > 1 else ""
    return InputError(
        f"the {what} is not finite{again} at step {step} (images {shown}); the newest checkpoint is whole: "
        f"{'go on with nonfinite: skip, or ' if can_skip else ''}begin another experiment_name with a lower lr, "
        "clip_grad_norm: 1 or mixed_precision: bf16"
    )
