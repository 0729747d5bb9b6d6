"""Losses and gradients of one optimizer step, over the global batch: all ranks and all micro-batches together."""

import contextlib

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lib.config import Experiment
from lib.distributed import gather_rows
from lib.model.heads import GlobalBatchNorm1d
from lib.model.losses import mask_loss, needs_global_batch, score_loss


class GlobalStep:
    """Accumulates the gradients of a step: the same for any number of ranks and micro-batches that share the images.

    Args:
        detector: the model without DDP around it. model: the same as it is trained.
    """

    def __init__(self, config: Experiment, accelerator: Accelerator, detector: nn.Module, model: nn.Module):
        self.config, self.accelerator, self.detector, self.model = config, accelerator, detector, model
        self.mask_loss, self.score_loss = mask_loss(config.mask_loss), score_loss(config.score_loss)

    def __call__(self, batches: list[dict], images: int, key: tuple[int, ...]) -> Tensor:
        """Accumulate the gradients of this rank's micro-batches.

        Args:
            images: how many images all ranks have in this step.
            key: numbers that seed dropout and stochastic depth; they differ from step to step.
        Returns:
            float tensor [mask loss, score loss]: this rank's part, whose sum over ranks is the step's loss.
        """
        accelerator, world = self.accelerator, self.accelerator.num_processes
        targets = gather_rows(self._scores(batches))
        # An image whose score is unknown still teaches the mask; it does not count in the mean over scores.
        known = targets.isfinite().sum().clamp(min=1)
        # Correlations need all scores of the step at once; with a weight of 0 nobody needs them.
        several = len(batches) > 1 and self.config.score_loss_weight > 0
        pairwise = several and needs_global_batch(self.config.score_loss)
        gradients, whole = self._score_gradients(batches, targets, key) if pairwise else (None, 0.0)
        total = torch.zeros(2, device=accelerator.device)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                self._seed(key, number)
                batch = _on_device(batch, accelerator.device)
                with accelerator.autocast():
                    heatmap, score = self.model(*_inputs(batch))
                mask = self.mask_loss(heatmap, batch["heatmap"]).sum() / images
                if pairwise:
                    rated = (score.float() * gradients[number]).sum()
                    share = whole / len(batches)
                else:
                    here = gather_rows(batch["score"]) if len(batches) > 1 else targets
                    rated = self.score_loss(gather_rows(score.float()), here) * (here.isfinite().sum() / known)
                    share = rated.detach()
                loss = self.config.mask_loss_weight * mask + self.config.score_loss_weight * rated
                # DDP takes the mean over ranks, of which each holds its part of a sum.
                accelerator.backward(loss * world)
            total += torch.stack([mask.detach(), share / world])
        return total

    def _score_gradients(
        self, batches: list[dict], targets: Tensor, key: tuple[int, ...]
    ) -> tuple[list[Tensor], Tensor]:
        """(gradient of the step's score loss for each micro-batch's scores, the loss).

        Correlations cannot be added up over micro-batches. The scores are computed once without gradients, the loss
        is differentiated with respect to them, and the second, real pass carries those gradients back.
        """
        scores, norms = [], norm_state(self.detector)
        with torch.no_grad(), self.accelerator.autocast():
            for number, batch in enumerate(batches):
                self._seed(key, number)
                scores.append(self.detector(*_inputs(_on_device(batch, self.accelerator.device)))[1].float())
        restore_norms(self.detector, norms)
        own = torch.cat(scores).requires_grad_()
        loss = self.score_loss(gather_rows(own), targets)
        gradient = torch.autograd.grad(loss, own)[0]
        return list(gradient.split([len(part) for part in scores])), loss.detach()

    def _scores(self, batches: list[dict]) -> Tensor:
        return torch.cat([batch["score"][: _rows(batch)] for batch in batches]).to(self.accelerator.device)

    def _seed(self, key: tuple[int, ...], micro_batch: int) -> None:
        # The same in both passes, and after a resume: no random state has to be saved.
        words = np.random.SeedSequence((*key, micro_batch, self.accelerator.process_index)).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]))


def _rows(batch: dict) -> int:
    # Every rank must run every forward pass. A rank that has no image left gets one of weight 0, which does not count.
    return int(batch["weight"].sum())


def _on_device(batch: dict, device: torch.device) -> dict:
    """The batch on the device; only the labels of rows that count."""
    rows = _rows(batch)
    batch = {**batch, "heatmap": batch["heatmap"][:rows], "score": batch["score"][:rows]}
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _inputs(batch: dict) -> tuple:
    return batch["pixel_values"], batch["input_ids"], batch["attention_mask"], len(batch["score"])


def norm_state(detector: nn.Module) -> list[Tensor]:
    """Copies of the running statistics: the only thing besides gradients that a forward pass changes."""
    return [buffer.clone() for buffer in _norm_buffers(detector)]


def restore_norms(detector: nn.Module, saved: list[Tensor]) -> None:
    """Put back what `norm_state` copied."""
    for buffer, value in zip(_norm_buffers(detector), saved, strict=True):
        buffer.copy_(value)


def _norm_buffers(detector: nn.Module) -> list[Tensor]:
    return [b for module in detector.modules() if isinstance(module, GlobalBatchNorm1d) for b in module.buffers()]
