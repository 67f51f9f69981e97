# SPDX-License-Identifier: Apache-2.0
"""Hooks for timing, writing, checkpoints, schedules, evaluation and profiling."""

import datetime
import itertools
import logging
import math
import operator
import time
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


class CallbackHook(HookBase):
    """A hook made of functions, each called with the trainer."""

    def __init__(self, *, before_train=None, after_train=None, before_step=None, after_step=None):
        """
        Args:
            before_train, after_train, before_step, after_step: functions of one argument, or None.
        """
        self._before_train = before_train
        self._after_train = after_train
        self._before_step = before_step
        self._after_step = after_step

    def before_train(self):
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self):
        if self._after_train:
            self._after_train(self.trainer)
        # The functions may hold objects that hold the trainer.
        self._before_train = self._after_train = self._before_step = self._after_step = None

    def before_step(self):
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self):
        if self._after_step:
            self._after_step(self.trainer)


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
        self._step_timer = Timer()
        self._start_time = time.perf_counter()
        self._total_timer = Timer()

    def before_train(self):
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self):
        logger = logging.getLogger(__name__)
        total = time.perf_counter() - self._start_time
        in_steps = self._total_timer.seconds()
        in_hooks = total - in_steps
        counted = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if counted > 0 and in_steps > 0:
            logger.info(
                f"Overall training speed: {counted} iterations in {_hms(in_steps)} "
                f"({in_steps / counted:.4f} s / it)"
            )
        logger.info(f"Total training time: {_hms(total)} ({_hms(in_hooks)} on hooks)")

    def before_step(self):
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self):
        done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()


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
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self):
        for writer in self._writers:
            # Once more: hooks such as EvalHook put their results after the last iteration.
            writer.write()
            writer.close()


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

    def _best_checking(self):
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            self._logger.warning(
                f"Given val metric {self._val_metric} does not seem to be computed/stored. "
                "Will not be checkpointing based on it."
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
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._best_checking()

    def after_train(self):
        # Not after a training that broke off.
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._best_checking()


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
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer,
                self.scheduler,
                self.trainer.max_iter,
                last_iter=self.trainer.iter - 1,
            )
        self._best_param_group_id = LRScheduler.get_best_param_group_id(self._optimizer)

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
        rate = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self):
        return self._scheduler or self.trainer.scheduler

    def state_dict(self):
        return self.scheduler.state_dict() if isinstance(self.scheduler, _LRScheduler) else {}

    def load_state_dict(self, state_dict):
        if isinstance(self.scheduler, _LRScheduler):
            logging.getLogger(__name__).info("Loading scheduler from state_dict ...")
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

    def _do_eval(self):
        results = self._func()
        if results:
            assert isinstance(results, dict), (
                f"Eval function must return a dict. Got {results} instead."
            )
            scalars = flatten_results_dict(results)
            for name, value in scalars.items():
                try:
                    scalars[name] = float(value)
                except Exception as e:
                    raise ValueError(
                        "[EvalHook] eval_function should return a nested dict of float. "
                        f"Got '{name}: {value}' instead."
                    ) from e
            for name, value in scalars.items():
                self.trainer.storage.put_scalar(name, value, smoothing_hint=False)
        # Only rank 0 may have evaluated, and the time limits of collectives are short.
        comm.synchronize()

    def after_step(self):
        done = self.trainer.iter + 1
        # The one after the last iteration is after_train's.
        if self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter:
            self._do_eval()

    def after_train(self):
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()
        # It usually holds the trainer: break the circle.
        del self._func


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
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._data_iter = None
        self._disabled = not get_bn_modules(model)
        if self._disabled:
            self._logger.info(
                "PreciseBN is disabled because model does not contain BN layers in training mode."
            )

    def after_step(self):
        done = self.trainer.iter + 1
        is_final = done == self.trainer.max_iter
        if is_final or (self._period > 0 and done % self._period == 0):
            self.update_stats()

    def update_stats(self):
        """Run the model on the next batches and store the averaged statistics."""
        if self._disabled:
            return
        if self._data_iter is None:
            self._data_iter = iter(self._data_loader)

        def batches():
            for index in itertools.count(1):
                if index % 100 == 0:
                    self._logger.info(
                        f"Running precise-BN ... {index}/{self._num_iter} iterations."
                    )
                yield next(self._data_iter)

        # Layers may log metrics in the forward pass; these would mix with the training's.
        with EventStorage():
            self._logger.info(
                f"Running precise-BN for {self._num_iter} iterations...  "
                "Note that this could produce different statistics every time."
            )
            update_bn_stats(self._model, batches(), self._num_iter)
