"""`train(config)`: the only training loop, for full fine-tuning and LoRA, one process or many."""

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from lib.config import Experiment
from lib.data.dataset import make_loader, training_data
from lib.data.held_out import record_held_out
from lib.errors import InputError
from lib.files import full_disk_told
from lib.model.detector import set_trainable
from lib.train.fsdp import whole
from lib.train.memory import TooLargeError, scarce
from lib.train.orphans import end_with_launcher
from lib.train.run_folder import cut_micro_batches, open_folder, read_splits, sole_owner
from lib.train.run_state import RunState, tidy
from lib.train.runtime import make_accelerator, make_optimizer, quiet_libraries, trained_share
from lib.train.schedule import Stage, plan_stages
from lib.train.signals import Interrupted, StopRequest, ended_at_once
from lib.train.skipping import Skipping
from lib.train.step import GlobalStep, norm_state, restore_norms
from lib.train.tracking import Tracker
from lib.train.validation import Validation


def train(config: Experiment) -> Path:
    """Train to the end, going on from the newest checkpoint when there is one; returns the run's folder.

    Writes config.yaml, held_out.json (with val_split), metrics.jsonl, tensorboard/, checkpoints/, best/ (when it
    evaluates) and at the end model/ and finished.json. Raises InputError for parameters or data that cannot be used,
    Interrupted after a signal (saved).
    """
    quiet_libraries()
    with ended_at_once(), full_disk_told(config.folder, "from the newest checkpoint"), contextlib.ExitStack() as stack:
        accelerator = make_accelerator(config)
        if accelerator.is_main_process:
            stack.enter_context(sole_owner(open_folder(config)))
        accelerator.wait_for_everyone()
        if (config.folder / "finished.json").is_file():
            if accelerator.is_main_process:
                tidy(config)  # the run may have been killed before it could
                print(f"{config.folder} is already trained; delete it or give another experiment_name.", flush=True)
        else:
            Run(config, accelerator).to_the_end()
    return config.folder


class Run:
    """One training: its state, its stages, and what happens at each step."""

    def __init__(self, config: Experiment, accelerator: Accelerator):
        self.config, self.accelerator, self.main = config, accelerator, accelerator.is_main_process
        self.data = training_data(config)
        self.validation = Validation(config) if config.val_iter > 0 else None
        self.state = RunState(config, accelerator, self.data)
        if self.main:  # after a look at the checkpoint: of other data nothing must be recorded
            record_held_out(config)
        self._plan()
        self.skipping = Skipping(config.nonfinite, self.total)

    def _plan(self) -> None:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self.splits = read_splits(self.config.folder)
        self.stages = plan_stages(self.config, len(self.data), rank, world, self.splits)
        self.total = self.stages[-1].last

    def to_the_end(self) -> None:
        """All stages that are left, then the final model."""
        state = self.state
        self._announce()
        self.tracker = Tracker(
            self.config.folder, self.total, state.step, self.main, self.config, again=state.unevaluated
        )
        try:
            with StopRequest() as self.stop:
                if state.unevaluated:
                    self._validate(next(stage for stage in self.stages if state.step <= stage.last))
                for number, stage in enumerate(self.stages):
                    if state.step < stage.last:
                        self._run_stage(number)
                state.finish(len(self.data), self.tracker.seconds)
                if self.main:
                    told = f"Trained {state.step} steps in {self.tracker.seconds:.0f} s"
                    print(f"{told}; the model is in {self.config.folder / 'model'}", flush=True)
        finally:
            self.tracker.close()

    def _run_stage(self, number: int) -> None:
        stage, state = self.stages[number], self.state
        set_trainable(state.detector, stage.name)
        optimizer = make_optimizer(state.detector, self.config)
        model, self.optimizer = state.prepare(optimizer, stage)
        self.gradients = GlobalStep(self.config, self.accelerator, state.detector, model)
        while not self._fits(stage):
            self._cut_micro_batches(stage)
            stage = self.stages[number]
        self.accelerator.free_memory()
        state.detector = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    def _fits(self, stage: Stage) -> bool:
        """Train to the end of the stage; False when a micro-batch was too large for the memory, nothing lost."""
        window = []
        try:
            with contextlib.closing(self._batches(stage)) as steps:
                for batches in steps:
                    window += self._update(stage, batches)
                    self.state.step += 1
                    if window and (self.state.step % self.config.log_iter == 0 or self.state.step == stage.last):
                        self._log(stage, window)
                        window = []
                    self._between_steps(stage)
        except TooLargeError:
            return False
        return True

    def _batches(self, stage: Stage) -> Iterator[list[dict]]:
        """This rank's micro-batches, step by step, from where the run is to the end of the stage."""
        sampler, first, last = stage.sampler, self.state.step - stage.first, stage.last - stage.first
        keys = sampler.flat(first, last)
        loader = make_loader(self.data, self.state.detector.text, keys, self.config.num_workers)
        with contextlib.closing(loader):
            for step in range(first, last):
                yield [next(loader) for _ in sampler.micro_batches(step)]

    def _update(self, stage: Stage, batches: list[dict]) -> list[tuple[float, float]]:
        """One optimizer step; returns [(mask loss, score loss)], or [] when it was skipped."""
        step, detector = self.state.step, self.state.detector
        for group in self.optimizer.param_groups:
            group["lr"] = stage.rate(step, group["base_lr"], group["floor_lr"])
        self.gradients.model.train()
        if stage.name == "warmup":
            detector.encoder.eval()
        self.norms = norm_state(detector)
        images = stage.sampler.images_in_step(step - stage.first)
        with scarce(TooLargeError()):
            losses = self.gradients(batches, images, (self.config.seed, step))
        mask, score, finite = self._agree(losses)
        if not finite:
            return self._skip(stage, batches)
        with scarce(InputError("out of memory for the optimizer's state; use lora_rank or a larger GPU")):
            self.optimizer.step()
        if self.optimizer.step_was_skipped:
            return self._skip(stage, batches, overflow=True)
        self.optimizer.zero_grad()
        self.skipping.updated()
        if self.state.ema:
            self.state.ema.update(detector)
        return [(mask, score)]

    def _agree(self, losses: Tensor) -> tuple[float, float, bool]:
        """Clip; (mask loss, score loss, whether all is finite) of the global batch, and whether any rank should stop.

        One reduction and one wait for the device a step: ranks must take the same decisions.
        """
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = whole(self.accelerator.clip_grad_norm_(trained, self.config.clip_grad_norm or math.inf))
        # Under fp16 infinite gradients are part of the search for a loss scale; the scaler skips such steps itself.
        norm = torch.zeros_like(losses[0]) if self.accelerator.scaler else norm
        told = torch.stack([*losses, norm, torch.tensor(float(bool(self.stop)), device=losses.device)])
        mask, score, norm, stop = self.accelerator.reduce(told, "sum").tolist()
        self.stopping = stop > 0
        return mask, score, math.isfinite(mask + score + norm)

    def _skip(self, stage: Stage, batches: list[dict], overflow: bool = False) -> list:
        """Forget a step whose loss or gradient is no number, or stop, as `nonfinite` says; returns [], its losses.

        `overflow`: the loss scaler has found it and lowered its scale.
        """
        step, scaler = self.state.step + 1, self.accelerator.scaler
        ids = gather_object([id for batch in batches for id in batch["id"]])
        if overflow:
            self.skipping.overflow(step, ids)
        else:
            self.tracker.log(step, stage.name, stage.epoch(step), skipped=", ".join(ids))
            self.skipping.loss(step, ids)
        restore_norms(self.state.detector, self.norms)
        self.optimizer.zero_grad()
        if scaler and not overflow:
            scaler.update()
        if overflow:
            why = f"the gradients overflow, the loss scale is {scaler.get_scale():g} now"
            self.tracker.log(step, stage.name, stage.epoch(step), skipped=why)
        return []

    def _log(self, stage: Stage, window: list[tuple[float, float]]) -> None:
        mask, score = (sum(column) / len(window) for column in zip(*window, strict=True))
        loss = self.config.mask_loss_weight * mask + self.config.score_loss_weight * score
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        values = {"loss": loss, "mask_loss": mask, "score_loss": score, "lr": rate}
        self.tracker.log(self.state.step, stage.name, stage.epoch(self.state.step), **values)

    def _between_steps(self, stage: Stage) -> None:
        """Save, stop and evaluate where that is due."""
        step = self.state.step
        epoch, ended, last = stage.epoch(step), stage.ends_epoch(step), step == stage.last
        evaluate_due = ended and self.validation and (epoch % self.config.val_iter == 0 or last)
        save_due = ended and self.config.save_iter > 0 and (epoch % self.config.save_iter == 0 or last)
        if save_due or self.stopping or step == self.total:
            # First, so that an evaluation that fails (an image of val, memory, a full disk) costs no training.
            self.state.save(self.optimizer.optimizer, unevaluated=bool(evaluate_due))
        if self.stopping and step < self.total:
            raise Interrupted(
                f"{self.stop.name or 'Another process'}: stopped at step {step} of {self.total} and saved; the same "
                "command goes on from here."
            )
        if evaluate_due:
            self._validate(stage)

    def _validate(self, stage: Stage) -> None:
        step = self.state.step
        set_trainable(self.state.detector, stage.name)  # on a CPU the last digits depend on it
        with self.state.final_detector() as detector, self.accelerator.autocast():
            with scarce(InputError("out of memory while evaluating; lower batch_size_val and run again")):
                figures = self.validation(detector)
            if figures:  # rank 0
                values = {f"val_{name}": value for name, value in figures.items()}
                self.tracker.log(step, stage.name, stage.epoch(step), **values)
                self.state.note_best(detector, figures["final_score"])
        self.state.note_evaluated()

    def _cut_micro_batches(self, stage: Stage) -> None:
        """After memory ran out: half as many images at a time, the same number in an optimizer step."""
        before = stage.sampler.micro_batch
        cut_micro_batches(self.config.folder, stage.name, before, self.splits.get(stage.name, 1))
        if self.accelerator.num_processes > 1:  # the others wait in a reduction that this one cannot join any more
            raise InputError(
                f"out of memory with {before} images at a time; the same command goes on from the newest checkpoint "
                "with half as many and twice the accumulation"
            )
        restore_norms(self.state.detector, self.norms)
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()
        self._plan()
        print(f"Out of memory with {before} images at a time: smaller micro-batches from here on.", flush=True)

    def _announce(self) -> None:
        if not self.main:
            return
        share, place = trained_share(self.state.detector), "sharded over" if self.state.plain else "on"
        device = f"{self.accelerator.num_processes} x {self.accelerator.device.type}"
        print(
            f"{self.config.name}: {len(self.data)} images, {self.total} steps {place} {device} in "
            f"{self.accelerator.mixed_precision.replace('no', 'fp32')}; {share['trained']:,} of "
            f"{share['parameters']:,} parameters train",
            flush=True,
        )
        if self.state.checkpoint:
            print(f"Going on from {self.state.checkpoint}.", flush=True)


def main(argv: list[str] | None = None) -> int:
    """`python -m lib.train CONFIG.yaml`: what torchrun starts in every process.

    Exit code 2 for unusable input, 130 for a run that was interrupted and saved. Under torchrun the latter is 0: it
    would report anything else as a failure and end ranks that still save.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if len(arguments) != 1:
            raise InputError("usage: python -m lib.train CONFIG.yaml")
        end_with_launcher()
        config = Experiment.from_yaml(arguments[0])
        if not config.experiment_name and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(f"{arguments[0]}: give experiment_name; several processes cannot agree on one by the date")
        train(config.resolved())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(str(stopped) or "Stopped; the same command goes on from the newest checkpoint.", flush=True)
        return 0 if "TORCHELASTIC_RUN_ID" in os.environ else 130
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0
