# SPDX-License-Identifier: Apache-2.0
"""One optimizer step, out of one batch or several smaller ones, that stops where it diverges."""

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
"""Steps in a row that mixed precision may skip for overflowing gradients."""
MIN_AMP_SCALE = 2.0**-14
"""Loss scale below which float16 (smallest normal number: this one) has no room left."""
MAX_AMP_SCALE = 2.0**40
"""Loss scale at which a training may start; far above what float16 gradients bear."""

Part = tuple[list[dict[str, Any]], dict[str, torch.Tensor]]


class StepTrainer(SimpleTrainer):
    """Detectron2's step with gradient accumulation and a check of the loss.

    With n images in k parts, the part of m images counts m/n. Where the loss is a mean over images,
    the step equals that of the whole batch; a loss normalised by something else (the number of
    boxes in the batch) and batch norm see the parts.

    A loss that is not finite in any process ends the training in all of them before the weights
    are touched, see :mod:`person_search.engine.divergence`. One process then costs one comparison
    per step, several one all-reduce of a byte.

    Args:
        parts: number of parts (k). Fewer if a step has fewer images.
        output_dir: where the report on a loss that is not finite goes; empty: nowhere.
    """

    def __init__(self, *args: Any, parts: int = 1, output_dir: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.parts, self.output_dir = parts, output_dir

    def run_step(self) -> None:
        assert self.model.training, f"{type(self).__name__}: the model is in eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        done: list[Part] = []
        chunks = _split(data, self.parts)
        for i, chunk in enumerate(chunks):
            with self._no_sync() if i < len(chunks) - 1 else nullcontext():
                losses = self._forward_backward(chunk, len(chunk) / len(data))
            done.append((chunk, losses))
        self.after_backward()

        totals = done[0][1]
        for _, losses in done[1:]:
            totals = {k: v + losses[k] for k, v in totals.items()}
        self._stop_unless_finite(sum(totals.values()), done)
        if (self.iter + 1) % self.gather_metric_period == 0:
            SimpleTrainer.write_metrics(totals, data_time, self.iter)
        self._update(done)

    def _forward_backward(self, chunk: list, share: float) -> dict[str, torch.Tensor]:
        """Adds a part's gradients; returns its losses, weighted by its share of the images."""
        with self._precision():
            losses = self.model(chunk)
            if isinstance(losses, torch.Tensor):
                losses = {"total_loss": losses}
            if share != 1:
                losses = {k: v * share for k, v in losses.items()}
            total = sum(losses.values())
        self._backward(total)
        return {k: v.detach() for k, v in losses.items()}

    def _no_sync(self):
        """Processes exchange gradients once per step, with the last part."""
        is_ddp = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if is_ddp else nullcontext()

    def _precision(self):
        return nullcontext()

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _update(self, done: list[Part]) -> None:
        self.optimizer.step()

    def _stop_unless_finite(self, loss: torch.Tensor, done: list[Part]) -> None:
        # After the backward pass, where write_metrics is about to wait for the GPU in any case.
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
        """Factor on the loss in mixed precision, else None."""
        return None


class AMPStepTrainer(StepTrainer, AMPTrainer):
    """The same in mixed precision.

    Gradients that overflow are normal now and then: the scaler skips the step and halves the loss
    scale. A long row of skipped steps, or a scale near zero, is not, and ends the training.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.num_skipped = 0
        self._last_scale: float | None = None

    def _precision(self):
        return torch.autocast(next(self.model.parameters()).device.type, dtype=self.precision)

    def _backward(self, loss: torch.Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update(self, done: list[Part]) -> None:
        self._stop_if_nothing_moves(done)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _stop_if_nothing_moves(self, done: list[Part]) -> None:
        """Looks at what the previous step made of the scale: reading that waits for nothing."""
        scale = self._amp_scale()
        skipped = self._last_scale is not None and scale < self._last_scale
        self.num_skipped = self.num_skipped + 1 if skipped else 0
        self._last_scale = scale
        if self.num_skipped >= MAX_SKIPPED_STEPS or scale < MIN_AMP_SCALE:
            self._stop(
                f"Gradients overflow in mixed precision: {self.num_skipped} steps in a row "
                f"changed no weight, the loss scale has come down to {scale:.2g}",
                done,
            )

    def _amp_scale(self) -> float:
        return self.grad_scaler.get_scale()


def _split(data: list, parts: int) -> list[list]:
    """Splits into at most ``parts`` runs whose lengths differ by at most one, none empty."""
    parts = min(parts, len(data))
    edges = [round(i * len(data) / parts) for i in range(parts + 1)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]
