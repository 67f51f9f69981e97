# SPDX-License-Identifier: Apache-2.0
"""One optimizer step out of several smaller batches (gradient accumulation)."""

import time
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from torch.nn.parallel import DistributedDataParallel


class AccumulatingTrainer(SimpleTrainer):
    """Runs the images of a step through the model in parts and sums their gradients.

    With n images in k parts, the part of m images counts m/n. Where the loss is a mean over images,
    the step equals that of the whole batch; a loss normalised by something else (the number of
    boxes in the batch) and batch norm see the parts.

    Args:
        parts: number of parts (k). Fewer if a step has fewer images.
    """

    def __init__(self, *args: Any, parts: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.parts = parts

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        totals: dict[str, torch.Tensor] = {}
        chunks = _split(data, self.parts)
        for i, chunk in enumerate(chunks):
            with self._no_sync() if i < len(chunks) - 1 else nullcontext():
                with self._precision():
                    losses = self.model(chunk)
                if isinstance(losses, torch.Tensor):
                    losses = {"total_loss": losses}
                losses = {k: v * (len(chunk) / len(data)) for k, v in losses.items()}
                self._backward(sum(losses.values()))
            for k, v in losses.items():
                totals[k] = totals.get(k, 0) + v.detach()
        self.after_backward()
        if (self.iter + 1) % self.gather_metric_period == 0:
            SimpleTrainer.write_metrics(totals, data_time, self.iter)
        self._update()

    def _no_sync(self):
        """Processes exchange gradients once per step, with the last part."""
        is_ddp = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if is_ddp else nullcontext()

    def _precision(self):
        return nullcontext()

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()


class AccumulatingAMPTrainer(AccumulatingTrainer, AMPTrainer):
    """The same in mixed precision on a GPU."""

    def _precision(self):
        return torch.autocast("cuda", dtype=self.precision)

    def _backward(self, loss: torch.Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


def _split(data: list, parts: int) -> list[list]:
    """Splits into at most ``parts`` runs whose lengths differ by at most one, none empty."""
    parts = min(parts, len(data))
    edges = [round(i * len(data) / parts) for i in range(parts + 1)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]
