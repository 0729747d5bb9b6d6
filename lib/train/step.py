"""Losses and gradients of one optimizer step, over the global batch: all ranks and all micro-batches together.

Nothing here reads a value back from the device, which would have to wait for it: how many images a rank has and which
scores are known follows from the order of the images.
"""

import contextlib

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.config import Experiment
from lib.distributed import gather_rows
from lib.model.losses import mask_loss, needs_global_batch, score_loss


class GlobalStep:
    """Accumulates the gradients of a step: the same for any number of ranks and micro-batches that share the images.

    Args:
        detector: the model without DDP around it. model: the same as it is trained.
        scores: float32 [images], the label of every training image on the host; NaN where it is unknown.
    """

    def __init__(
        self, config: Experiment, accelerator: Accelerator, detector: nn.Module, model: nn.Module, scores: Tensor
    ):  # fmt: skip
        self.config, self.accelerator, self.detector, self.model = config, accelerator, detector, model
        self.scores, self.rank = scores, accelerator.process_index
        self.mask_loss, self.score_loss = mask_loss(config.mask_loss), score_loss(config.score_loss)
        norms = [module for module in detector.modules() if isinstance(module, _BatchNorm)]
        # The running statistics: the only thing besides gradients that a forward pass changes.
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]

    def __call__(self, batches: list[dict], shares: list[list[np.ndarray]], key: tuple[int, ...]) -> Tensor:
        """Accumulate the gradients of this rank's micro-batches.

        Args:
            batches: the micro-batches. shares: the images of the step, as `StepSampler.shares` gives them.
            key: numbers that seed dropout and stochastic depth; they differ from step to step.
        Returns:
            float tensor [mask loss, score loss]: this rank's part, whose sum over ranks is the step's loss.
        """
        accelerator, world = self.accelerator, self.accelerator.num_processes
        everything = np.concatenate([np.concatenate(ranks) for ranks in shares])
        # An image whose score is unknown still teaches the mask; it does not count in the mean over scores.
        known = max(1, self._known(everything))
        # Correlations need all scores of the step at once; with a weight of 0 nobody needs them.
        several = len(batches) > 1 and self.config.score_loss_weight > 0
        pairwise = several and needs_global_batch(self.config.score_loss)
        gradients, step_loss = self._score_gradients(batches, shares, key) if pairwise else (None, 0.0)
        total = torch.zeros(2, device=accelerator.device)
        for number, (batch, ranks) in enumerate(zip(batches, shares, strict=True)):
            last = number == len(batches) - 1
            rows = len(ranks[self.rank])
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                self._seed(key, number)
                batch = _on_device(batch, accelerator.device)
                with accelerator.autocast():
                    heatmap, score = self.model(*_inputs(batch), rows)
                mask = self.mask_loss(heatmap, batch["heatmap"][:rows]).sum() / len(everything)
                if pairwise:
                    rated = (score.float() * gradients[number]).sum()
                    share = step_loss / len(batches)
                else:
                    rated = self._score_loss(score, [ranks]) * (self._known(np.concatenate(ranks)) / known)
                    share = rated.detach()
                loss = self.config.mask_loss_weight * mask + self.config.score_loss_weight * rated
                # DDP takes the mean over ranks, of which each holds its part of a sum.
                accelerator.backward(loss * world)
            total += torch.stack([mask.detach(), share / world])
        return total

    def _score_gradients(
        self, batches: list[dict], shares: list[list[np.ndarray]], key: tuple[int, ...]
    ) -> tuple[list[Tensor], Tensor]:
        """(gradient of the step's score loss for each micro-batch's scores, the loss).

        Correlations cannot be added up over micro-batches. The scores are computed once without gradients, the loss
        is differentiated with respect to them, and the second, real pass carries those gradients back.
        """
        scores, before = [], self.saved_statistics()
        rows = [len(ranks[self.rank]) for ranks in shares]
        with torch.no_grad(), self.accelerator.autocast():
            for number, batch in enumerate(batches):
                self._seed(key, number)
                batch = _on_device(batch, self.accelerator.device)
                scores.append(self.detector(*_inputs(batch), rows[number])[1].float())
        self.restore_statistics(before)
        own = torch.cat(scores).requires_grad_()
        loss = self._score_loss(own, shares)
        gradient = torch.autograd.grad(loss, own)[0]
        return list(gradient.split(rows)), loss.detach()

    def _score_loss(self, own: Tensor, shares: list[list[np.ndarray]]) -> Tensor:
        """The score loss over the images of some micro-batches; `own` are this rank's scores of them, in order."""
        by_rank = [np.concatenate([ranks[rank] for ranks in shares]) for rank in range(len(shares[0]))]
        scores = gather_rows(own.float(), [len(images) for images in by_rank])
        labels = self.scores[np.concatenate(by_rank)]
        return self.score_loss(scores, labels.pin_memory() if scores.is_cuda else labels)

    def _known(self, images: np.ndarray) -> int:
        return int(np.isfinite(self.scores.numpy()[images]).sum())

    def _seed(self, key: tuple[int, ...], micro_batch: int) -> None:
        # The same in both passes, and after a resume: no random state has to be saved.
        words = np.random.SeedSequence((*key, micro_batch, self.rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]))

    def saved_statistics(self) -> list[Tensor]:
        """Copies of the running statistics of all BatchNorms."""
        return [buffer.clone() for buffer in self.statistics]

    def restore_statistics(self, saved: list[Tensor]) -> None:
        """Put back what `saved_statistics` copied."""
        for buffer, value in zip(self.statistics, saved, strict=True):
            buffer.copy_(value)


def _on_device(batch: dict, device: torch.device) -> dict:
    """The batch on the device, heatmaps in 0..1."""
    batch = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
    return {**batch, "heatmap": batch["heatmap"] / 255}


def _inputs(batch: dict) -> tuple[Tensor, Tensor, Tensor]:
    return batch["pixel_values"], batch["input_ids"], batch["attention_mask"]
