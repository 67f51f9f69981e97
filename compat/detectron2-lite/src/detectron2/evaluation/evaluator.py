# SPDX-License-Identifier: Apache-2.0
"""Evaluator base classes and the loop that runs a model over a data set."""

import datetime
import logging
import time
from collections import OrderedDict
from contextlib import contextmanager, nullcontext

import torch
from detectron2.utils.comm import get_world_size, is_main_process
from detectron2.utils.logger import log_every_n_seconds
from torch import nn


class DatasetEvaluator:
    """Collects pairs of inputs and outputs, then turns them into figures."""

    def reset(self):
        """Forget everything; called before each run."""

    def process(self, inputs, outputs):
        """Take one batch.

        Args:
            inputs: what the model was given.
            outputs: what it returned, usually one entry for each input.
        """

    def evaluate(self):
        """Compute the figures; called once, after all batches.

        Returns:
            task -> {metric -> value}, or nothing (as on ranks other than 0).
        """


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one."""

    def __init__(self, evaluators):
        """
        Args:
            evaluators: a list of `DatasetEvaluator`.
        """
        super().__init__()
        self._evaluators = evaluators

    def reset(self):
        for part in self._evaluators:
            part.reset()

    def process(self, inputs, outputs):
        for part in self._evaluators:
            part.process(inputs, outputs)

    def evaluate(self):
        """All evaluators' tasks in one dict, which is empty on ranks other than 0."""
        # Every rank has to ask every evaluator: they may wait for each other in there.
        answers = [part.evaluate() for part in self._evaluators]
        merged = OrderedDict()
        for answer in answers if is_main_process() else ():
            for task, metrics in (answer or {}).items():
                assert task not in merged, f"two evaluators give results for the task {task!r}"
                merged[task] = metrics
        return merged


class _Stopwatch:
    """Seconds spent on data, model and evaluator, not counting the first batches."""

    def __init__(self, total: int):
        self.total = total
        self.num_warmup = min(5, total - 1)
        self.start(0)

    def start(self, index: int) -> None:
        """Begin, or begin anew while warming up, with batch `index`."""
        if index == 0 or index == self.num_warmup:
            self.start_time = time.perf_counter()
            self.data = self.compute = self.evaluate = 0.0

    def elapsed(self) -> float:
        return time.perf_counter() - self.start_time

    def report(self, index: int) -> None:
        """Log the progress from time to time, after batch `index`."""
        counted = index + 1 - self.num_warmup * int(index >= self.num_warmup)
        compute = self.compute / counted
        # Early figures are poor; a slow model may speak sooner.
        if index < self.num_warmup * 2 and compute <= 5:
            return
        per_batch = self.elapsed() / counted
        eta = datetime.timedelta(seconds=int(per_batch * (self.total - index - 1)))
        log_every_n_seconds(
            logging.INFO,
            f"Inference done {index + 1}/{self.total}. "
            f"Dataloading: {self.data / counted:.4f} s/iter. "
            f"Inference: {compute:.4f} s/iter. "
            f"Eval: {self.evaluate / counted:.4f} s/iter. "
            f"Total: {per_batch:.4f} s/iter. "
            f"ETA={eta}",
            n=5,
        )

    def summarize(self) -> None:
        """Log the totals."""
        logger = logging.getLogger(__name__)
        counted = self.total - self.num_warmup
        elapsed, devices = self.elapsed(), get_world_size()
        logger.info(
            f"Total inference time: {datetime.timedelta(seconds=elapsed)} "
            f"({elapsed / counted:.6f} s / iter per device, on {devices} devices)"
        )
        logger.info(
            f"Total inference pure compute time: "
            f"{datetime.timedelta(seconds=int(self.compute))} "
            f"({self.compute / counted:.6f} s / iter per device, on {devices} devices)"
        )


def inference_on_dataset(
    model,
    data_loader,
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks=None,
):
    """Run a model over a data set and evaluate it, timing both.

    Args:
        model: a callable; a module runs in eval mode and gets its mode back afterwards.
        data_loader: an iterable of inputs with a length.
        evaluator: one evaluator, a list of them, or None to measure the speed only.
        callbacks: functions by name: `on_start`, `before_inference`, `after_inference`, `on_end`.

    Returns:
        What `evaluator.evaluate()` returns, or an empty dict if that is None.
    """
    logger = logging.getLogger(__name__)
    logger.info(f"Start inference on {len(data_loader)} batches")
    if evaluator is None:
        evaluator = DatasetEvaluators([])
    elif isinstance(evaluator, list):
        evaluator = DatasetEvaluators(evaluator)
    evaluator.reset()

    callbacks = callbacks or {}

    def call(name):
        if name in callbacks:
            callbacks[name]()

    watch = _Stopwatch(len(data_loader))
    eval_mode = inference_context(model) if isinstance(model, nn.Module) else nullcontext()
    with eval_mode, torch.no_grad():
        data_start = time.perf_counter()
        call("on_start")
        for index, inputs in enumerate(data_loader):
            data_time = time.perf_counter() - data_start
            watch.start(index)
            watch.data += data_time

            compute_start = time.perf_counter()
            call("before_inference")
            outputs = model(inputs)
            call("after_inference")
            if torch.cuda.is_available():
                # Kernels run on; without waiting, the evaluator would get their time.
                torch.cuda.synchronize()
            watch.compute += time.perf_counter() - compute_start

            evaluate_start = time.perf_counter()
            evaluator.process(inputs, outputs)
            watch.evaluate += time.perf_counter() - evaluate_start

            watch.report(index)
            data_start = time.perf_counter()
        call("on_end")

    watch.summarize()
    results = evaluator.evaluate()
    # Ranks other than 0 often return nothing; callers may still index the result.
    return {} if results is None else results


@contextmanager
def inference_context(model):
    """Put a module into eval mode inside this block."""
    training = model.training
    model.eval()
    yield
    model.train(training)
