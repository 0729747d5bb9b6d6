"""`train(config)`: the only training loop, for full fine-tuning and LoRA, one process or many."""

import contextlib
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from lib.config import Experiment
from lib.data.dataset import make_loader, training_data
from lib.data.splits import record_held_out, validation_source
from lib.distributed import gather_objects, rank
from lib.errors import InputError
from lib.files import explaining_disk_errors, replacing
from lib.metrics.counts import score_table, sweep, threshold_curve
from lib.model.detector import DistortionDetector
from lib.model.lora import own_weights, set_trainable
from lib.model.weights import load_weights, read_safetensors, refuse_nonfinite
from lib.predict.prediction import predict
from lib.records import read_metrics
from lib.signals import Interrupted, StopRequest
from lib.train import checkpoint as files
from lib.train.accelerator import explaining_memory_errors, make_accelerator
from lib.train.log import Log
from lib.train.schedule import Stage, make_optimizer, plan_stages, trained_share
from lib.train.step import GlobalStep

THRESHOLDS = range(10, 250, 10)  # of the validation
REPORTED = ("final_score", "f1_score", "plcc", "srcc")
MOST_SKIPPED = 30  # steps in a row before training gives up: the loss scaler's search from 65536 down to 1 takes 16
OVERFLOW = "the gradients overflow"  # how the log calls a step that the loss scaler skipped
CALMER = "begin another experiment_name with a lower lr, clip_grad_norm: 1 or mixed_precision: bf16"


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
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # Accelerate knows no other name
    with explaining_disk_errors(config.folder, "from the newest checkpoint"), contextlib.ExitStack() as stack:
        accelerator = make_accelerator(config)
        if accelerator.is_main_process:
            stack.enter_context(files.opened_folder(config))
        accelerator.wait_for_everyone()
        if files.is_finished(config.folder):
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
        self.skipped = 0  # steps in a row
        self.optimizer = None
        self._begin()
        if self.main:  # after a look at the checkpoint: of other data nothing must be recorded
            record_held_out(config)

    def _begin(self) -> None:
        """The detector as new, or as the newest checkpoint has it."""
        config, accelerator = self.config, self.accelerator
        self.checkpoint = gather_objects(files.latest_checkpoint(config.folder) if self.main else None)[0]
        with accelerator.local_main_process_first():  # one process downloads, the others find it in the cache
            self.detector = DistortionDetector.from_checkpoint(config).to(accelerator.device)
        base = self.detector.base["sha256"][:16] if config.lora_rank else ""  # without adapters all weights are saved
        noted = files.circumstances(self.data, accelerator.mixed_precision, base) if self.main else None
        self.circumstances = gather_objects(noted)[0]
        state = {"step": 0, "scaler": None}
        if self.checkpoint:
            state = files.read_state(self.checkpoint)
            files.refuse_changes(self.checkpoint, state, self.circumstances)
            partial = "encoder." if config.lora_rank else ""
            load_weights(self.detector, self._saved("model"), self.checkpoint, partial)
        set_trainable(self.detector, "main")
        self.ema = files.Ema(self.detector, config.ema_decay) if config.ema else None
        if self.checkpoint and self.ema:
            self.ema.load(self._saved("ema"))
        if state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        # What was evaluated up to here stands in the log. NaN is no figure to compare with.
        rows = [r for r in read_metrics(config.folder) if r["step"] <= self.step and "val_final_score" in r]
        self.best = max((r["val_final_score"] for r in rows if not math.isnan(r["val_final_score"])), default=-math.inf)
        self.evaluated = gather_objects({row["step"] for row in rows})[0]

    def _saved(self, group: str) -> dict[str, Tensor]:
        return read_safetensors(self.checkpoint / f"{group}.safetensors")

    def to_the_end(self, on_record: Callable[[], None]) -> None:
        """All stages that are left, then the final model."""
        config, share = self.config, trained_share(self.detector)
        self.log = Log(config, self.accelerator, self.total, self.step, on_record)
        self.log.say(
            f"{config.name}: {len(self.data)} images, {self.total} steps on {self.accelerator.num_processes} x "
            f"{self.accelerator.device.type} in {self.accelerator.mixed_precision.replace('no', 'fp32')}; "
            f"{share['trained']:,} of {share['parameters']:,} parameters train"
        )
        if self.checkpoint:
            self.log.say(f"Going on from {self.checkpoint}.")
        try:
            with StopRequest() as self.stop:
                for stage in self.stages:
                    # A killed or interrupted process may have saved without coming to the evaluation.
                    if stage.due(self.step, config.val_iter) and self.step not in self.evaluated:
                        self._evaluate(stage)
                    if self.step < stage.last:
                        self._run_stage(stage)
                self._finish()
                model = config.folder / "model"
                self.log.say(f"Trained {self.step} steps in {self.log.seconds:.0f} s; the model is in {model}")
        finally:
            self.log.close()

    def _run_stage(self, stage: Stage) -> None:
        carried = self.config.carry_optimizer
        # One that is carried over knows what trains later: until then such parameters have no gradient and no moments.
        set_trainable(self.detector, "main" if carried else stage.name)
        kept = carried and self.optimizer
        optimizer = self.optimizer.optimizer if kept else make_optimizer(self.detector, self.config)
        # A checkpoint at the end of a stage holds that stage's optimizer; the next stage starts its own.
        if self.checkpoint and self.step > (0 if carried else stage.first):
            files.load_optimizer_tensors(optimizer, self._saved("optimizer"))
        self.checkpoint = None
        set_trainable(self.detector, stage.name)
        # Where torch keeps the optimizer's state: on a GPU its counters would make every step wait for each of them.
        self.optimizer = self.accelerator.prepare_optimizer(optimizer, device_placement=False)
        model = self.accelerator.prepare(self.detector)
        self.gradients = GlobalStep(self.config, self.accelerator, self.detector, model, self.data.scores())
        self._set_mode(stage)
        window = []
        with contextlib.closing(self._batches(stage)) as steps:
            for batches in steps:
                window += self._update(stage, batches)
                self.step += 1
                if window and (self.step % self.config.log_iter == 0 or self.step == stage.last):
                    mask, score = (sum(column) / len(window) for column in zip(*window, strict=True))
                    loss = self.config.mask_loss_weight * mask + self.config.score_loss_weight * score
                    rate = max(group["lr"] for group in self.optimizer.param_groups)
                    values = {"loss": loss, "mask_loss": mask, "score_loss": score, "lr": rate}
                    self.log.record(self.step, stage.name, stage.epoch(self.step), **values)
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
        statistics = self.gradients.saved_statistics()
        shares = stage.sampler.shares(self.step - stage.first)
        with explaining_memory_errors(
            f"with {stage.sampler.batch_size} images at a time; set gradient_checkpointing: true and run again, or "
            "begin another experiment_name with a lower batch_size (batch_size_warmup) and a higher accumulate_step"
        ):
            losses = self.gradients(batches, shares, (self.config.seed, self.step))
            mask, score, finite = self._agree(losses)
            if finite:
                self.optimizer.step()
        if not finite or self.optimizer.step_was_skipped:
            self._skip(stage, batches, overflow=finite)
            self.gradients.restore_statistics(statistics)
            self.optimizer.zero_grad()
            return []
        self.optimizer.zero_grad()
        self.skipped = 0
        if self.ema:
            self.ema.update()
        return [(mask, score)]

    def _agree(self, losses: Tensor) -> tuple[float, float, bool]:
        """Clip; (mask loss, score loss, whether all is finite) of the global batch, and whether any rank should stop.

        One reduction and one wait for the device a step: ranks must take the same decisions.
        """
        self.accelerator.unscale_gradients()
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if self.config.clip_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(trained, self.config.clip_grad_norm, norm)
        # Under fp16 infinite gradients are part of the search for a loss scale; the scaler skips such steps itself.
        norm = torch.zeros_like(losses[0]) if self.accelerator.scaler else norm
        mine = torch.stack([*losses, norm, torch.full_like(norm, float(bool(self.stop)))])
        mask, score, norm, stop = self.accelerator.reduce(mine, "sum").tolist()
        self.stopping = stop > 0
        return mask, score, math.isfinite(mask + score + norm)

    def _skip(self, stage: Stage, batches: list[dict], overflow: bool) -> None:
        """Record a step whose loss or gradient is not finite; raises InputError when `nonfinite` or the limit says so.

        `overflow`: the loss scaler has found it and lowered its scale.
        """
        step, scaler = self.step + 1, self.accelerator.scaler
        ids = sum(gather_objects([id for batch in batches for id in batch["id"]]), [])
        why = f"{OVERFLOW}, the loss scale is {scaler.get_scale():g} now" if overflow else ", ".join(ids)
        self.log.record(step, stage.name, stage.epoch(step), skipped=why)
        self.skipped += 1
        stops = not overflow and self.config.nonfinite == "stop"
        if stops or self.skipped >= min(MOST_SKIPPED, self.total):  # no run ends without a single update
            shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more, all in metrics.jsonl" if len(ids) > 8 else "")
            before = f" and {self.skipped - 1} steps before it" if self.skipped > 1 else ""
            raise InputError(
                f"the loss or its gradient is not finite at step {step} (images {shown}){before}; "
                f"the newest checkpoint is whole: {'go on with nonfinite: skip, or ' if stops else ''}{CALMER}"
            )
        if scaler and not overflow:
            scaler.update()

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
            self._set_mode(stage)

    def _set_mode(self, stage: Stage) -> None:
        """Dropout and norms as a stage trains; the frozen encoder of the warm-up as `warmup_encoder` says."""
        self.gradients.model.train()
        if stage.name == "warmup":
            self.detector.encoder.train(self.config.warmup_encoder == "train")

    def _save(self) -> None:
        """Write a checkpoint; all ranks must call it. Raises InputError for weights that are not finite."""
        weights = own_weights(self.detector)
        refuse_nonfinite(weights, f"{self.config.folder} at step {self.step}")  # so that the newest one is whole
        if self.main:
            groups = {"model": weights}
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
            with explaining_memory_errors("while evaluating; lower batch_size_val and run again"):
                figures = validation_figures(self.detector, self.config, *self.validation[:2])
            if self.main and figures["final_score"] > self.best:
                self.best = figures["final_score"]
                self._save_model("best")
        if self.main:  # recorded last: an evaluation that is recorded is not repeated
            values = {f"val_{name}": value for name, value in figures.items()}
            self.log.record(self.step, stage.name, stage.epoch(self.step), **values)

    def _averaged(self):
        """Context in which the detector holds what is evaluated and given away: the averages when there are any."""
        return self.ema.swapped_in(self.detector) if self.ema else contextlib.nullcontext()

    def _save_model(self, name: str) -> None:
        with replacing(self.config.folder / name) as part:
            self.detector.save_pretrained(part)
            shutil.rmtree(self.config.folder / name, ignore_errors=True)

    def _finish(self) -> None:
        """Write the model, then the note that the run is complete, and only then drop what could resume it."""
        if not self.main:
            return
        skipped = [row["skipped"] for row in read_metrics(self.config.folder) if "skipped" in row]
        lost = sum(not why.startswith(OVERFLOW) for why in skipped)
        if lost > self.total / 2:
            raise InputError(
                f"the loss was not finite in {lost} of {self.total} steps, so this is no trained model; {CALMER}"
            )
        with self._averaged():
            self._save_model("model")
        facts = {"steps": self.step, "skipped": lost, "seconds": round(self.log.seconds, 1), "images": len(self.data)}
        files.write_finished(self.config.folder, self.detector, **facts)
        files.tidy(self.config)


def validation_figures(detector: DistortionDetector, config: Experiment, store, ids: list[str]) -> dict | None:
    """Predict labelled images into the run's folder; figures at the best of a coarse grid of thresholds.

    The threshold is chosen on the same images, so these figures compare epochs of one run with each other; notebook 3
    measures a run, with the threshold of one split applied to another.
    Returns {name: value} on rank 0, None elsewhere; all ranks must call it, since they share the work.
    """
    options = {"batch_size": config.batch_size_val, "num_workers": config.num_workers, "progress": False}
    predictions = predict(detector, store, config.folder / "predictions" / "validation", ids, **options)
    if rank():
        return None
    counts = sweep(predictions, store, THRESHOLDS, ids=ids)
    curve = threshold_curve(counts, score_table(predictions, store, ids))
    best = curve.loc[curve["final_score"].idxmax()]
    return {**{name: float(best[name]) for name in REPORTED}, "threshold": int(best["threshold"])}
