# SPDX-License-Identifier: Apache-2.0
"""Evaluator base classes and the evaluation loop."""

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
    """Base class of evaluators, which process inputs and outputs of a model."""

    def reset(self):
        """Resets the evaluator for a new evaluation."""

    def process(self, inputs, outputs):
        """Processes one batch.

        Args:
            inputs: Inputs of the model.
            outputs: Outputs of the model, usually one per input.
        """

    def evaluate(self):
        """Computes the metrics after all batches.

        Returns:
            Dict from task to a dict from metric to value; None or empty on ranks other than 0.
        """


class DatasetEvaluators(DatasetEvaluator):
    """Combines several evaluators.

    Args:
        evaluators: List of ``DatasetEvaluator``.
    """

    def __init__(self, evaluators):
        super().__init__()
        self._evaluators = evaluators

    def reset(self):
        """Resets all evaluators."""
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs, outputs):
        """Processes one batch with all evaluators."""
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self):
        """Returns the results of all evaluators in one dict, empty on ranks other than 0."""
        merged = OrderedDict()
        for evaluator in self._evaluators:
            results = evaluator.evaluate()
            if is_main_process() and results is not None:
                for task, metrics in results.items():
                    assert task not in merged, f"two evaluators return results of task {task!r}"
                    merged[task] = metrics
        return merged


class _InferenceTimer:
    """Measures the time of data loading, model and evaluator without the first batches."""

    def __init__(self, total: int):
        self.total = total
        self.num_warmup = min(5, total - 1)
        self.start(0)

    def start(self, index: int) -> None:
        """Resets the timer before the first batch and after the warmup."""
        if index == 0 or index == self.num_warmup:
            self.start_time = time.perf_counter()
            self.data = self.compute = self.evaluate = 0.0

    def log_progress(self, index: int) -> None:
        """Logs the progress after batch ``index``, at most every 5 seconds."""
        counted = index + 1 - self.num_warmup * int(index >= self.num_warmup)
        compute = self.compute / counted
        # early measurements are inaccurate; for a slow model, they are logged
        if index < self.num_warmup * 2 and compute <= 5:
            return
        per_batch = (time.perf_counter() - self.start_time) / counted
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

    def log_summary(self) -> None:
        """Logs the total times."""
        logger = logging.getLogger(__name__)
        counted = self.total - self.num_warmup
        elapsed, devices = time.perf_counter() - self.start_time, get_world_size()
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
    """Runs a model on a data set and evaluates it. It also measures the speed.

    Args:
        model: Callable. A module runs in eval mode; its mode is restored afterwards.
        data_loader: Iterable of inputs with a length.
        evaluator: Evaluator, list of evaluators, or None to measure the speed only.
        callbacks: Dict of functions: ``on_start``, ``before_inference``, ``after_inference``,
            ``on_end``.

    Returns:
        The result of ``evaluator.evaluate()``; an empty dict if it is None.
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

    timer = _InferenceTimer(len(data_loader))
    eval_mode = inference_context(model) if isinstance(model, nn.Module) else nullcontext()
    with eval_mode, torch.no_grad():
        data_start = time.perf_counter()
        call("on_start")
        for index, inputs in enumerate(data_loader):
            data_time = time.perf_counter() - data_start
            timer.start(index)
            timer.data += data_time

            compute_start = time.perf_counter()
            call("before_inference")
            outputs = model(inputs)
            call("after_inference")
            if torch.cuda.is_available():
                # CUDA kernels run asynchronously
                torch.cuda.synchronize()
            timer.compute += time.perf_counter() - compute_start

            evaluate_start = time.perf_counter()
            evaluator.process(inputs, outputs)
            timer.evaluate += time.perf_counter() - evaluate_start

            timer.log_progress(index)
            data_start = time.perf_counter()
        call("on_end")

    timer.log_summary()
    results = evaluator.evaluate()
    # evaluators often return None on ranks other than 0
    return {} if results is None else results


@contextmanager
def inference_context(model):
    """Context manager that sets a module to eval mode."""
    training = model.training
    model.eval()
    yield
    model.train(training)
