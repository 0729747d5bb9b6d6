"""`train(config)`: the only training loop, for full fine-tuning and LoRA, one process or many.

Everything random is drawn from generators seeded by (seed, step), so a resumed run needs no random state, and
the learning rate is a function of the step, so it needs no scheduler state.
"""

import contextlib
import json
import math
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from lib import checkpoints
from lib.config import Experiment
from lib.dataset import StepSampler, make_loader, training_data
from lib.distributed import gather_rows
from lib.ema import Ema, own_weights
from lib.errors import InputError
from lib.losses import mask_loss, needs_global_batch, score_loss
from lib.model import DistortionDetector, load_weights, set_trainable
from lib.runtime import (
    frozen_batch_norm,
    make_accelerator,
    make_folder,
    make_optimizer,
    quiet_tokenizers,
    settle_config,
    stop_signals,
    trained_share,
)
from lib.tracking import Tracker
from lib.validation import Validation


@dataclass
class Stage:
    """One part of the run: `first` .. `last` are steps of the whole run."""

    number: int
    name: str
    sampler: StepSampler
    first: int
    last: int


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGINT: the run was saved and can go on."""

    def _render_traceback_(self):
        return [str(self)]


def train(config: Experiment) -> Path:
    """Train to the end, going on from the newest checkpoint when there is one; returns the run's folder.

    Writes config.yaml, metrics.jsonl, tensorboard/, checkpoints/ and at the end model/ and finished.json.
    Raises InputError for parameters or data that cannot be used, Interrupted after a signal (state saved).
    """
    folder = config.folder
    make_folder(folder)
    settle_config(config, folder)
    if (folder / "finished.json").is_file():
        print(f"{folder} is already trained; delete it or give another experiment_name to train again.", flush=True)
        return folder
    quiet_tokenizers()
    return Run(config, make_accelerator(config)).to_the_end()


def plan_stages(config: Experiment, images: int, rank: int, world: int) -> list[Stage]:
    """The warm-up (when it has epochs) and the main stage, with the steps each one takes."""
    stages, first = [], 0
    plan = (("warmup", config.warmup_epoch, config.batch_size_warmup), ("main", config.epoch, config.batch_size))
    for number, (name, epochs, batch_size) in enumerate(plan):
        if epochs:
            sampler = StepSampler(images, config.seed, number, batch_size, config.accumulate_step, rank, world)
            stages.append(Stage(number, name, sampler, first, first + epochs * sampler.steps_per_epoch))
            first = stages[-1].last
    return stages


class Run:
    """State of one training: the detector, its stages, and how far it got."""

    def __init__(self, config: Experiment, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        self.folder = config.folder
        self.detector = DistortionDetector.from_checkpoint(config).to(accelerator.device)
        self.data = training_data(config)
        self.stages = plan_stages(config, len(self.data), accelerator.process_index, accelerator.num_processes)
        self.mask_loss, self.score_loss = mask_loss(config.mask_loss), score_loss(config.score_loss)
        self.ema = Ema(self.detector, config.ema_decay) if config.ema else None
        self.validation = Validation(config) if config.val_iter > 0 else None
        self.step, self.best, self.seconds = 0, -math.inf, 0.0
        self.resume_from = checkpoints.latest_checkpoint(self.folder / "checkpoints")
        if self.resume_from:
            self.step = self.resume_from[1]["step"]
        self.signal = None

    def to_the_end(self) -> Path:
        self._announce()
        main = self.accelerator.is_main_process
        self.tracker = Tracker(self.folder, self.stages[-1].last, self.step, active=main)
        started = time.monotonic()
        try:
            with stop_signals(self._on_signal):
                for stage in self.stages:
                    if self.step < stage.last:
                        self._run_stage(stage, started)
        finally:
            self.tracker.close()
        self._finish(time.monotonic() - started)
        return self.folder

    def _run_stage(self, stage: Stage, started: float) -> None:
        set_trainable(self.detector, stage.name)
        optimizer = make_optimizer(self.detector, self.config)
        if self.resume_from:
            self._load(self.resume_from, stage, optimizer)
        model, optimizer = self.accelerator.prepare(self.detector, optimizer)
        loader = iter(self._loader(stage))
        window = []
        while self.step < stage.last:
            batches = [next(loader) for _ in range(len(stage.sampler.micro_batches(self.step - stage.first)))]
            window.append(self._optimizer_step(stage, model, optimizer, batches))
            self.step += 1
            epoch, ended = divmod(self.step - stage.first, stage.sampler.steps_per_epoch)
            if self.step % self.config.log_iter == 0 or self.step == stage.last:
                self._log(stage, optimizer, window)
                window = []
            if ended == 0 and self.validation and (epoch % self.config.val_iter == 0 or self.step == stage.last):
                self._validate(stage)
            save_due = self.config.save_iter > 0 and ended == 0 and epoch % self.config.save_iter == 0
            if self._stop_requested() or (save_due and self.step < self.stages[-1].last) or self.step == stage.last:
                self._save(optimizer)
            if self.signal:
                raise Interrupted(f"Stopped at step {self.step} and saved; the same command goes on from here.")
        self.accelerator.free_memory()
        self.detector = self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    def _optimizer_step(self, stage: Stage, model, optimizer, batches: list[dict]) -> tuple[float, float]:
        """One update over the global batch; returns its mask and score loss as this rank sees them."""
        for group in optimizer.param_groups:
            group["lr"] = self._rate(stage, group["base_lr"])
        model.train()
        if stage.name == "warmup":
            self.detector.encoder.eval()
        images = stage.sampler.images_in_step(self.step - stage.first)
        batches = [self._to_device(batch) for batch in batches]
        score_gradients = self._score_gradients(batches) if len(batches) > 1 and needs_global_batch(self.config.score_loss) else None
        mask_total = score_total = 0.0
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                self._seed(number)
                heatmap, score = model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"])
                mask = (self.mask_loss(heatmap, batch["heatmap"]) * batch["weight"]).sum() / images
                if score_gradients is None:
                    rated, share = self._global_score_loss(score, batch, images)
                else:
                    share = (score.float() * score_gradients[number]).sum()
                    rated = self.last_score_loss / len(batches)
                loss = self.config.mask_loss_weight * mask + self.config.score_loss_weight * share
                self.accelerator.backward(loss * self.accelerator.num_processes)
            mask_total += mask.item()
            score_total += float(rated)
        self._check_finite(mask_total + score_total, batches)
        if self.config.clip_grad_norm:
            self.accelerator.clip_grad_norm_(model.parameters(), self.config.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.detector)
        return mask_total, score_total

    def _global_score_loss(self, score: Tensor, batch: dict, images: int) -> tuple[Tensor, Tensor]:
        """(loss of the micro-batch over all ranks, the same as this rank's share of the step's loss)."""
        scores, targets, weights = (gather_rows(x) for x in (score.float(), batch["score"], batch["weight"]))
        real = weights > 0
        loss = self.score_loss(scores[real], targets[real]) * (real.sum() / images)
        return loss.detach(), loss

    def _score_gradients(self, batches: list[dict]) -> list[Tensor]:
        """Gradient of the score loss over the whole accumulated batch, for each micro-batch's scores.

        Correlations cannot be added up over micro-batches. The scores are computed once without gradients, the
        loss is differentiated with respect to them, and the second, real pass carries those gradients back.
        """
        scores = []
        with torch.no_grad(), frozen_batch_norm(self.detector), self.accelerator.autocast():
            for number, batch in enumerate(batches):
                self._seed(number)
                scores.append(self.detector(batch["pixel_values"], batch["input_ids"], batch["attention_mask"])[1].float())
        own = torch.cat(scores).requires_grad_()
        targets, weights = (torch.cat([batch[name] for batch in batches]) for name in ("score", "weight"))
        scores, targets, weights = gather_rows(own), gather_rows(targets), gather_rows(weights)
        loss = self.score_loss(scores[weights > 0], targets[weights > 0])
        gradient = torch.autograd.grad(loss, own)[0]
        self.last_score_loss = loss.item()
        return list(gradient.split([len(batch["score"]) for batch in batches]))

    def _rate(self, stage: Stage, base: float) -> float:
        """Constant in the warm-up; in the main stage a cosine from `base` to `min_lr` in proportion."""
        if stage.name == "warmup":
            return base
        floor = base * self.config.min_lr / self.config.lr if self.config.lr else 0.0
        progress = (self.step - stage.first) / (stage.last - stage.first)
        return floor + (base - floor) * (1 + math.cos(math.pi * progress)) / 2

    def _seed(self, micro_batch: int) -> None:
        """Dropout and stochastic depth of this micro-batch, the same in both passes and after a resume."""
        key = (self.config.seed, self.step, micro_batch, self.accelerator.process_index)
        torch.manual_seed(hash(key) % 2**63)

    def _loader(self, stage: Stage):
        batches = stage.sampler.flat(self.step - stage.first, stage.last - stage.first)
        return make_loader(self.data, self.detector.text, batches, self.config.num_workers)

    def _to_device(self, batch: dict) -> dict:
        device = self.accelerator.device
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _check_finite(self, loss: float, batches: list[dict]) -> None:
        finite = self.accelerator.reduce(torch.tensor(float(math.isfinite(loss)), device=self.accelerator.device), "sum")
        if finite < self.accelerator.num_processes:
            ids = [id for batch in batches for id in batch["id"]]
            raise InputError(
                f"the loss is not finite at step {self.step} (images {', '.join(ids[:8])}{' ...' if len(ids) > 8 else ''}); "
                f"the last checkpoint in {self.folder / 'checkpoints'} is whole: lower lr, set clip_grad_norm, or use bf16"
            )

    def _log(self, stage: Stage, optimizer, window: list[tuple[float, float]]) -> None:
        sums = torch.tensor([sum(w[0] for w in window), sum(w[1] for w in window), len(window)], device=self.accelerator.device)
        mask, score, count = self.accelerator.reduce(sums, "sum").tolist()
        # Each rank holds its share of the mask loss and the whole score loss.
        mask, score = mask * self.accelerator.num_processes / count, score / count
        loss = self.config.mask_loss_weight * mask + self.config.score_loss_weight * score
        epoch = -(-(self.step - stage.first) // stage.sampler.steps_per_epoch)
        rate = max(group["lr"] for group in optimizer.param_groups)
        self.tracker.log(self.step, stage.name, epoch, loss=loss, mask_loss=mask, score_loss=score, lr=rate)

    def _validate(self, stage: Stage) -> None:
        with self.ema.swapped_in(self.detector) if self.ema else contextlib.nullcontext():
            figures = self.validation(self.detector)
            if figures:  # rank 0
                epoch = (self.step - stage.first) // stage.sampler.steps_per_epoch
                self.tracker.log(self.step, stage.name, epoch, **{f"val_{name}": value for name, value in figures.items()})
                if figures["final_score"] > self.best:
                    self.best = figures["final_score"]
                    self.detector.save_pretrained(self.folder / "best")

    def _save(self, optimizer) -> None:
        if self.accelerator.is_main_process:
            tensors = {"model": own_weights(self.detector), "optimizer": checkpoints.optimizer_tensors(optimizer.optimizer)}
            if self.ema:
                tensors["ema"] = self.ema.weights
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
            state = {"best": self.best, "scaler": scaler}
            checkpoints.save_checkpoint(self.folder / "checkpoints", self.step, tensors, state, max(2, self.config.keep_checkpoints))
        self.accelerator.wait_for_everyone()

    def _load(self, found: tuple[Path, dict], stage: Stage, optimizer) -> None:
        path, state = found
        load_weights(self.detector, checkpoints.read_group(path, "model"), path, partial="encoder.")
        if self.ema:
            self.ema.weights = {k: v.to(self.accelerator.device) for k, v in checkpoints.read_group(path, "ema").items()}
        # A checkpoint at the end of a stage belongs to that stage's optimizer; the next stage starts its own.
        if self.step > stage.first:
            checkpoints.load_optimizer_tensors(optimizer, checkpoints.read_group(path, "optimizer"))
        if state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.best = state["best"]
        self.resume_from = None

    def _finish(self, seconds: float) -> None:
        if self.resume_from:  # killed between the last checkpoint and the end: the weights are on disk only
            self._load(self.resume_from, self.stages[-1], make_optimizer(self.detector, self.config))
        if not self.accelerator.is_main_process:
            return
        with self.ema.swapped_in(self.detector) if self.ema else contextlib.nullcontext():
            self.detector.save_pretrained(self.folder / "model")
        checkpoints.prune(self.folder / "checkpoints", self.config.keep_checkpoints)
        summary = {"steps": self.step, "seconds": round(seconds, 1), "images": len(self.data), **trained_share(self.detector)}
        (self.folder / "finished.json").write_text(json.dumps(summary, indent=1))
        print(f"Trained {self.step} steps in {seconds:.0f} s; the model is in {self.folder / 'model'}", flush=True)

    def _announce(self) -> None:
        if not self.accelerator.is_main_process:
            return
        share = trained_share(self.detector)
        print(
            f"{self.config.name}: {len(self.data)} images, {self.stages[-1].last} steps on {self.accelerator.num_processes} x "
            f"{self.accelerator.device.type} in {self.accelerator.mixed_precision.replace('no', 'fp32')}; "
            f"{share['trained']:,} of {share['parameters']:,} parameters train",
            flush=True,
        )
        if self.resume_from:
            print(f"Going on from {self.resume_from[0]}.", flush=True)

    def _on_signal(self, number, _frame) -> None:
        if self.signal:  # asked twice: stop now
            raise KeyboardInterrupt
        self.signal = number
        print(f"{signal.Signals(number).name}: finishing this step, then saving.", flush=True)

    def _stop_requested(self) -> bool:
        """Whether any rank got a signal; all ranks agree, so that they stop at the same step."""
        asked = torch.tensor(float(bool(self.signal)), device=self.accelerator.device)
        if self.accelerator.num_processes > 1 and self.accelerator.reduce(asked, "sum") > 0:
            self.signal = self.signal or signal.SIGTERM
        return bool(self.signal)


def main(argv: list[str] | None = None) -> int:
    """`python -m lib.training CONFIG.yaml`: what torchrun starts in every process."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        train(Experiment.from_yaml(arguments[0]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except Interrupted as stopped:
        print(stopped, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
