# SPDX-License-Identifier: Apache-2.0
"""Hooks for timing, writing, checkpoints, schedules, evaluation and profiling."""

import datetime
import logging
import math
import operator
from collections import Counter

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.solver import LRScheduler as _LRScheduler
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

from .profiling import AutogradProfiler, TorchMemoryStats, TorchProfiler
from .train_loop import HookBase

__all__ = [
    "CallbackHook",
    "IterationTimer",
    "PeriodicWriter",
    "PeriodicCheckpointer",
    "BestCheckpointer",
    "LRScheduler",
    "AutogradProfiler",
    "EvalHook",
    "PreciseBN",
    "TorchProfiler",
    "TorchMemoryStats",
]


def _is_last(trainer) -> bool:
    """Whether the current iteration is the last; after the loop, whether it ran to the end."""
    return trainer.iter + 1 >= trainer.max_iter


def _is_due(trainer, period: int) -> bool:
    """Whether the current iteration completes a period. A period of 0 never does."""
    return period > 0 and (trainer.iter + 1) % period == 0


class CallbackHook(HookBase):
    """A hook made of functions, each called with the trainer."""

    def __init__(self, *, before_train=None, after_train=None, before_step=None, after_step=None):
        """
        Args:
            before_train, after_train, before_step, after_step: functions of one argument, or None.
        """
        self._functions = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }

    def _call(self, event: str) -> None:
        function = self._functions.get(event)
        if function is not None:
            function(self.trainer)

    def before_train(self):
        self._call("before_train")

    def after_train(self):
        self._call("after_train")
        # The functions may hold objects that hold the trainer.
        self._functions.clear()

    def before_step(self):
        self._call("before_step")

    def after_step(self):
        self._call("after_step")


class IterationTimer(HookBase):
    """Puts the seconds of each iteration as the scalar `time` and logs a summary at the end.

    It should be the first hook: time between its `before_step` and `after_step` counts as the
    iteration's, the rest as the hooks'.
    """

    def __init__(self, warmup_iter=3):
        """
        Args:
            warmup_iter: iterations at the start that are not counted.
        """
        self._warmup_iter = warmup_iter
        # `_all` runs from the start on; `_steps` only during iterations; `_step` during one.
        self._all, self._steps, self._step = Timer(), Timer(), Timer()

    def _start_counting(self) -> None:
        self._all.reset()
        self._steps.reset()

    def before_train(self):
        self._start_counting()
        self._steps.pause()

    def after_train(self):
        logger = logging.getLogger(__name__)
        total, in_steps = self._all.seconds(), self._steps.seconds()
        counted = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if counted > 0 and in_steps > 0:
            logger.info(
                f"Overall training speed: {counted} iterations in {_hms(in_steps)} "
                f"({in_steps / counted:.4f} s / it)"
            )
        logger.info(f"Total training time: {_hms(total)} ({_hms(total - in_steps)} on hooks)")

    def before_step(self):
        self._step.reset()
        self._steps.resume()

    def after_step(self):
        storage = self.trainer.storage
        if storage.iter - self.trainer.start_iter + 1 < self._warmup_iter:
            self._start_counting()
        else:
            storage.put_scalars(time=self._step.seconds())
        self._steps.pause()


def _hms(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))


class PeriodicWriter(HookBase):
    """Calls event writers every `period` iterations, after the last one, and after training."""

    def __init__(self, writers, period=20):
        """
        Args:
            writers: a list of `EventWriter`.
            period: iterations between two calls.
        """
        self._writers = writers
        self._period = period

    def after_step(self):
        if _is_due(self.trainer, self._period) or _is_last(self.trainer):
            self._write()

    def after_train(self):
        # Once more: hooks such as EvalHook put their results after the last iteration.
        self._write(and_close=True)

    def _write(self, and_close: bool = False) -> None:
        for each in self._writers:
            each.write()
            if and_close:
                each.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's `PeriodicCheckpointer` (same arguments) as a hook."""

    def before_train(self):
        self.max_iter = self.trainer.max_iter

    def after_step(self):
        # The iteration goes into the file under the key "iteration".
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Keeps the checkpoint with the best value of a metric. Register it after `EvalHook`."""

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        """
        Args:
            eval_period: that of the `EvalHook`.
            checkpointer: what saves.
            val_metric: name of the scalar, for example "bbox/AP50".
            mode: whether the larger ("max") or the smaller ("min") value is better.
            file_prefix: name of the file without its ending.
        """
        assert mode in ("max", "min"), (
            f"Mode \"{mode}\" to `BestCheckpointer` is unknown. It should be one of ('max', 'min')."
        )
        self._logger = logging.getLogger(__name__)
        self._period = eval_period
        self._val_metric = val_metric
        self._is_better = operator.gt if mode == "max" else operator.lt
        self._checkpointer = checkpointer
        self._file_prefix = file_prefix
        self.best_metric = None
        self.best_iter = None

    def _update_best(self, val, iteration) -> bool:
        if math.isnan(val) or math.isinf(val):
            return False
        self.best_metric, self.best_iter = val, iteration
        return True

    def _save_if_best(self) -> None:
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            self._logger.warning(
                f"No best checkpoint: nothing has put the metric {self._val_metric!r}. Is an "
                "EvalHook registered before this hook, and does its function return the metric?"
            )
            return
        value, iteration = latest
        best, best_iter = self.best_metric, self.best_iter
        if best is None:
            if self._update_best(value, iteration):
                self._checkpointer.save(self._file_prefix, iteration=iteration)
                self._logger.info(f"Saved first model at {value:0.5f} @ {iteration} steps")
        elif self._is_better(value, best):
            self._checkpointer.save(self._file_prefix, iteration=iteration)
            self._logger.info(
                f"Saved best model as latest eval score for {self._val_metric} is {value:0.5f}, "
                f"better than last best score {best:0.5f} @ iteration {best_iter}."
            )
            self._update_best(value, iteration)
        else:
            self._logger.info(
                f"Not saving as latest eval score for {self._val_metric} is {value:0.5f}, "
                f"not better than best score {best:0.5f} @ iteration {best_iter}."
            )

    def after_step(self):
        if _is_due(self.trainer, self._period) and not _is_last(self.trainer):
            self._save_if_best()

    def after_train(self):
        # Not after a training that broke off.
        if _is_last(self.trainer):
            self._save_if_best()


class LRScheduler(HookBase):
    """Steps a learning rate schedule and puts the rate as the scalar `lr`."""

    def __init__(self, optimizer=None, scheduler=None):
        """
        Args:
            optimizer: the optimizer; the trainer's by default.
            scheduler: a PyTorch scheduler, or an fvcore `ParamScheduler`, which multiplies the
                optimizer's rates; the trainer's by default.
        """
        self._optimizer = optimizer
        self._scheduler = scheduler

    def before_train(self):
        trainer = self.trainer
        if self._optimizer is None:
            self._optimizer = trainer.optimizer
        schedule = self.scheduler
        if isinstance(schedule, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, schedule, trainer.max_iter, last_iter=trainer.iter - 1
            )
        self._shown_group = LRScheduler.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer) -> int:
        """Index of the group whose rate stands for all: the largest, or one of the commonest rate.

        The second rule is for optimizers with one group a parameter.
        """
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self):
        rate = self._optimizer.param_groups[self._shown_group]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self):
        return self._scheduler or self.trainer.scheduler

    def state_dict(self):
        return self.scheduler.state_dict() if isinstance(self.scheduler, _LRScheduler) else {}

    def load_state_dict(self, state_dict):
        if isinstance(self.scheduler, _LRScheduler):
            logging.getLogger(__name__).info("Loading the state of the learning rate schedule")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Runs an evaluation every so many iterations and after training.

    All ranks must have it, even if some evaluate nothing: they wait for each other afterwards.
    """

    def __init__(self, eval_period, eval_function, eval_after_train=True):
        """
        Args:
            eval_period: iterations between two evaluations; 0 for none but the last.
            eval_function: takes nothing, returns a nested dict of numbers, or nothing.
            eval_after_train: evaluate after the last iteration.
        """
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def _evaluate(self) -> None:
        results = self._func()
        if results:
            scalars = _as_scalars(results)
            self.trainer.storage.put_scalars(**scalars, smoothing_hint=False)
        # Only rank 0 may have evaluated, and the time limits of collectives are short.
        comm.synchronize()

    def after_step(self):
        # The one after the last iteration is after_train's.
        if _is_due(self.trainer, self._period) and not _is_last(self.trainer):
            self._evaluate()

    def after_train(self):
        if self._eval_after_train and _is_last(self.trainer):
            self._evaluate()
        # It usually holds the trainer: break the circle.
        self._func = None


def _as_scalars(results) -> dict[str, float]:
    """Results of an evaluation as flat name -> number; an error names the entry that is none."""
    assert isinstance(results, dict), (
        f"EvalHook: eval_function has to return a dict, or nothing; it returned {results!r}"
    )
    scalars = {}
    for name, value in flatten_results_dict(results).items():
        try:
            scalars[name] = float(value)
        except Exception as e:
            raise ValueError(
                f"EvalHook: eval_function returned {value!r} under {name!r}; it has to return a "
                "nested dict of float"
            ) from e
    return scalars


class PreciseBN(HookBase):
    """Replaces the running statistics of batch norm layers by true averages over many batches."""

    def __init__(self, period, model, data_loader, num_iter):
        """
        Args:
            period: iterations between two updates; 0 for one after training only.
            model: its batch norm layers in training mode are updated.
            data_loader: gives the inputs of `model`.
            num_iter: batches to average over.
        """
        self._logger = logging.getLogger(__name__)
        self._period = period
        self._model = model
        self._num_iter = num_iter
        self._batches = self._lazily(data_loader)
        self._enabled = bool(get_bn_modules(model))
        if not self._enabled:
            self._logger.info("No precise batch norm: no such layer is in training mode")

    @staticmethod
    def _lazily(data_loader):
        # A generator: the loader's workers start when the first batch is asked for.
        yield from data_loader

    def after_step(self):
        if _is_last(self.trainer) or _is_due(self.trainer, self._period):
            self.update_stats()

    def update_stats(self):
        """Run the model on the next batches and store the averaged statistics."""
        if not self._enabled:
            return
        self._logger.info(f"Running precise-BN for {self._num_iter} iterations...")
        # Layers may log metrics in the forward pass; these would mix with the training's.
        with EventStorage():
            update_bn_stats(self._model, self._watched_batches(), self._num_iter)

    def _watched_batches(self):
        for count, batch in enumerate(self._batches, start=1):
            if count % 100 == 0:
                self._logger.info(f"Running precise-BN ... {count}/{self._num_iter} iterations.")
            yield batch
