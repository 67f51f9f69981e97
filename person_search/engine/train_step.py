# SPDX-License-Identifier: Apache-2.0
"""One optimizer step with gradient accumulation, which stops a training that diverges."""

import logging
import time
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch.nn.parallel import DistributedDataParallel

from person_search.engine.divergence import (
    step_report,
    stop_training,
    true_in_all_processes,
)

MAX_SKIPPED_STEPS = 50
"""Number of consecutive steps that mixed precision may skip for overflowing gradients."""
MIN_AMP_SCALE = 2.0**-14
"""Smallest useful loss scale: the smallest normal number of float16."""
MAX_AMP_SCALE = 2.0**40
"""Largest loss scale that a training may start with; far above the range of float16."""

LOADER_ADVICE = (
    "Usual causes: shared memory (/dev/shm) or memory is full, or a disk does not respond. "
    "Remedies: a smaller DATALOADER.NUM_WORKERS (0 loads in the main process) or "
    "SOLVER.IMS_PER_BATCH, or more shared memory for a container (docker run --shm-size=8g)."
)

Part = tuple[list[dict[str, Any]], dict[str, torch.Tensor]]


class StepTrainer(SimpleTrainer):
    """Extends Detectron2's step by gradient accumulation and a check of the loss.

    With n images in k parts, a part of m images has the weight m/n. If the loss is a mean over
    images, or the model has the hook ``loss_normalizer``
    (:class:`person_search.interface.NormalizesLosses`), the step equals that of the whole batch.
    Other losses and batch norm see the parts.

    A loss that is not finite in one process ends the training in all of them before the weights
    change, see :mod:`person_search.engine.divergence`. This costs one comparison per step, or one
    all-reduce of a byte with several processes.

    Args:
        *args: As in ``SimpleTrainer``.
        parts: Number of parts (k); fewer if a step has fewer images.
        autocast: Type of mixed precision without a loss scale. Default: full precision.
        output_dir: Folder of the report on a loss that is not finite. If empty, none is written.
        **kwargs: As in ``SimpleTrainer``.
    """

    def __init__(
        self,
        *args: Any,
        parts: int = 1,
        output_dir: str = "",
        autocast: torch.dtype | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.parts, self.output_dir, self.autocast = parts, output_dir, autocast

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the optimizer, or warns if the checkpoint has none."""
        if "optimizer" not in state_dict:
            logging.getLogger(__name__).warning(
                "The checkpoint holds no optimizer state: the optimizer starts afresh with the "
                "loaded weights."
            )
            state_dict = {**state_dict, "optimizer": self.optimizer.state_dict()}
        super().load_state_dict(state_dict)

    def run_step(self) -> None:
        """Runs one step: forward and backward passes of all parts, and one update."""
        assert self.model.training, f"{type(self).__name__}: the model is in eval mode"
        start = time.perf_counter()
        data = self._next_batch()
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        done: list[Part] = []
        chunks = _split(data, self.parts)
        self._counts: list[tuple[torch.Tensor, torch.Tensor]] = []
        for i, chunk in enumerate(chunks):
            with self._no_sync() if i < len(chunks) - 1 else nullcontext():
                losses = self._forward_backward(chunk, len(chunk) / len(data))
            done.append((chunk, losses))
        self.after_backward()
        scale = self._normalize_gradients()

        totals = {k: v * scale for k, v in done[0][1].items()}
        for _, losses in done[1:]:
            totals = {k: v + losses[k] * scale for k, v in totals.items()}
        self._stop_unless_finite(sum(totals.values()), done)
        if (self.iter + 1) % self.gather_metric_period == 0:
            SimpleTrainer.write_metrics(totals, data_time, self.iter)
        self._update(done)

    def _next_batch(self) -> list[dict[str, Any]]:
        try:
            return next(self._data_loader_iter)
        except RuntimeError as e:
            text = str(e)
            if "DataLoader timed out" in text:
                raise TimeoutError(
                    f"{text}: no worker process has delivered a batch (DATALOADER.TIMEOUT, in "
                    f"seconds; 0 waits without a limit). {LOADER_ADVICE}"
                ) from e
            if text.startswith("DataLoader worker (pid") or "shared memory" in text:
                raise OSError(f"A worker process of the data loader died. {LOADER_ADVICE}") from e
            raise

    def _forward_backward(self, chunk: list, share: float) -> dict[str, torch.Tensor]:
        """Adds the gradients of a part; returns its losses, weighted by its share of the images."""
        with self._precision():
            losses = self.model(chunk)
            if isinstance(losses, torch.Tensor):
                losses = {"total_loss": losses}
            if share != 1:
                weight = self._part_weight(share)
                losses = {k: v * weight for k, v in losses.items()}
            total = sum(losses.values())
        self._backward(total)
        return {k: v.detach() for k, v in losses.items()}

    def _part_weight(self, share: float) -> torch.Tensor | float:
        """Returns the weight of a part: its divisor over an estimate of that of the whole batch."""
        model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        normalizer = getattr(model, "loss_normalizer", None)
        if normalizer is None:
            return share
        if not self._counts:
            self._estimate = normalizer[0] / share
        self._counts.append(normalizer)
        return normalizer[0] / self._estimate

    def _normalize_gradients(self) -> torch.Tensor | float:
        """Replaces the estimate by the divisor of the whole batch; returns the factor."""
        if not self._counts:
            return 1.0
        divisors, counts = (torch.stack(x).sum() for x in zip(*self._counts, strict=True))
        scale = self._estimate / torch.where(counts > 0, counts, divisors)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        return scale

    def _no_sync(self):
        """Returns the context of all parts but the last, whose gradients are not exchanged yet."""
        is_ddp = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if is_ddp else nullcontext()

    def _precision(self):
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(next(self.model.parameters()).device.type, dtype=self.autocast)

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _update(self, done: list[Part]) -> None:
        self.optimizer.step()

    def _stop_unless_finite(self, loss: torch.Tensor, done: list[Part]) -> None:
        # After the backward pass, where write_metrics waits for the GPU in any case.
        if not true_in_all_processes(loss.detach().isfinite()):
            self._stop("The loss is not finite", done)

    def _stop(self, reason: str, done: list[Part]) -> None:
        scale = self._amp_scale()
        stop_training(
            reason,
            iteration=self.iter,
            output_dir=self.output_dir,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            report=step_report(self.model, done, scale or 1.0),
            amp_scale=scale,
        )

    def _amp_scale(self) -> float | None:
        """Returns the factor of the loss in mixed precision, else None."""
        return None


class AMPStepTrainer(StepTrainer, AMPTrainer):
    """Does the same in float16 with a loss scale.

    Gradients may overflow now and then: the scaler skips the step and halves the loss scale. Many
    skipped steps in a row, or a loss scale near zero, end the training.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.autocast = self.precision
        self.num_skipped = 0
        self._last_scale: float | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the optimizer and, if the checkpoint is from mixed precision, the loss scale."""
        super().load_state_dict({"grad_scaler": self.grad_scaler.state_dict(), **state_dict})

    def _backward(self, loss: torch.Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update(self, done: list[Part]) -> None:
        self._stop_if_nothing_moves(done)
        self.grad_scaler.unscale_(self.optimizer)  # a fused step would do so after the clipping
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _stop_if_nothing_moves(self, done: list[Part]) -> None:
        """Checks the loss scale after the previous step, which needs no synchronization."""
        scale = self._amp_scale()
        skipped = self._last_scale is not None and scale < self._last_scale
        self.num_skipped = self.num_skipped + 1 if skipped else 0
        self._last_scale = scale
        if self.num_skipped >= MAX_SKIPPED_STEPS or scale < MIN_AMP_SCALE:
            self._stop(
                f"Gradients overflow in mixed precision: {self.num_skipped} steps in a row "
                f"changed no weight, the loss scale has fallen to {scale:.2g}",
                done,
            )

    def _amp_scale(self) -> float:
        return self.grad_scaler.get_scale()


def _split(data: list, parts: int) -> list[list]:
    """Splits a list into at most ``parts`` non-empty lists of nearly equal length."""
    parts = min(parts, len(data))
    edges = [round(i * len(data) / parts) for i in range(parts + 1)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]
