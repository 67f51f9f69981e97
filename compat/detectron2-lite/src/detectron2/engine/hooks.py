# SPDX-License-Identifier: Apache-2.0
"""Hooks for timing, writing, checkpoints, schedules and evaluation."""

import datetime
import logging
import math
import operator
from collections import Counter

from detectron2._lite import absent
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

from .train_loop import HookBase

__getattr__ = absent(__name__, "AutogradProfiler", "TorchMemoryStats", "TorchProfiler")


def _is_last(trainer) -> bool:
    """Returns whether the iteration is the last; after the loop, whether training was completed."""
    return trainer.iter + 1 >= trainer.max_iter


def _is_due(trainer, period: int) -> bool:
    """Returns whether the iteration completes a period; always False for a period of 0."""
    return period > 0 and (trainer.iter + 1) % period == 0


class CallbackHook(HookBase):
    """Calls functions with the trainer.

    Args:
        before_train: Function of the trainer, or None.
        after_train: Function of the trainer, or None.
        before_step: Function of the trainer, or None.
        after_step: Function of the trainer, or None.
    """

    def __init__(self, *, before_train=None, after_train=None, before_step=None, after_step=None):
        self._before_train = before_train
        self._before_step = before_step
        self._after_step = after_step
        self._after_train = after_train

    def before_train(self):
        """Calls ``before_train``."""
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self):
        """Calls ``after_train``."""
        if self._after_train:
            self._after_train(self.trainer)
        # The functions may hold references to the trainer.
        self._before_train = self._after_train = self._before_step = self._after_step = None

    def before_step(self):
        """Calls ``before_step``."""
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self):
        """Calls ``after_step``."""
        if self._after_step:
            self._after_step(self.trainer)


class IterationTimer(HookBase):
    """Records the seconds per iteration as the scalar "time" and logs a summary at the end.

    It should be the first hook: the time between its ``before_step`` and ``after_step`` counts as
    the iteration, the rest as the other hooks.

    Args:
        warmup_iter: Number of iterations at the start that are not counted.
    """

    def __init__(self, warmup_iter=3):
        self._warmup_iter = warmup_iter
        self._total_timer, self._steps_timer, self._step_timer = Timer(), Timer(), Timer()

    def before_train(self):
        """Starts the timers."""
        self._total_timer.reset()
        self._steps_timer.reset()
        self._steps_timer.pause()

    def after_train(self):
        """Logs the total time and the time per iteration."""
        logger = logging.getLogger(__name__)
        total, in_steps = self._total_timer.seconds(), self._steps_timer.seconds()
        counted = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if counted > 0 and in_steps > 0:
            logger.info(
                f"Overall training speed: {counted} iterations in {_hms(in_steps)} "
                f"({in_steps / counted:.4f} s / it)"
            )
        logger.info(f"Total training time: {_hms(total)} ({_hms(total - in_steps)} on hooks)")

    def before_step(self):
        """Starts the timer of the iteration."""
        self._step_timer.reset()
        self._steps_timer.resume()

    def after_step(self):
        """Records the time of the iteration."""
        storage = self.trainer.storage
        if storage.iter - self.trainer.start_iter + 1 < self._warmup_iter:
            self._total_timer.reset()
            self._steps_timer.reset()
        else:
            storage.put_scalars(time=self._step_timer.seconds())
        self._steps_timer.pause()


def _hms(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))


class PeriodicWriter(HookBase):
    """Calls event writers periodically, after the last iteration, and after training.

    Args:
        writers: List of ``EventWriter``.
        period: Number of iterations between two calls.
    """

    def __init__(self, writers, period=20):
        self._writers = writers
        self._period = period

    def after_step(self):
        """Writes if the period is complete."""
        if _is_due(self.trainer, self._period) or _is_last(self.trainer):
            for writer in self._writers:
                writer.write()

    def after_train(self):
        """Writes the results of hooks that run after training, and closes the writers."""
        for writer in self._writers:
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's ``PeriodicCheckpointer``, with the same arguments, as a hook."""

    def before_train(self):
        """Sets the number of iterations."""
        self.max_iter = self.trainer.max_iter

    def after_step(self):
        """Saves a checkpoint, with the key "iteration", if the period is complete."""
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves the checkpoint with the best value of a metric. It must follow ``EvalHook``.

    Args:
        eval_period: Period of the ``EvalHook``.
        checkpointer: Checkpointer that saves.
        val_metric: Name of the metric, for example "bbox/AP50".
        mode: Whether larger ("max") or smaller ("min") values are better.
        file_prefix: File name without extension.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
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
                f"The metric {self._val_metric!r} was not found, so the best checkpoint is not "
                "saved. An EvalHook that returns it must be registered before this hook."
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
        """Saves after an evaluation that improved the metric."""
        if _is_due(self.trainer, self._period) and not _is_last(self.trainer):
            self._save_if_best()

    def after_train(self):
        """Saves after the last evaluation if it improved the metric."""
        if _is_last(self.trainer):
            self._save_if_best()


class LRScheduler(HookBase):
    """Steps a learning rate scheduler and records the learning rate as the scalar "lr".

    Args:
        optimizer: Optimizer; by default that of the trainer.
        scheduler: PyTorch scheduler, or fvcore ``ParamScheduler`` that multiplies the learning
            rates of the optimizer; by default that of the trainer.
    """

    def __init__(self, optimizer=None, scheduler=None):
        self._optimizer = optimizer
        self._scheduler = scheduler

    def before_train(self):
        """Takes the defaults from the trainer."""
        trainer = self.trainer
        if self._optimizer is None:
            self._optimizer = trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, trainer.max_iter, last_iter=trainer.iter - 1
            )
        self._best_param_group_id = LRScheduler.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer) -> int:
        """Returns the index of the parameter group whose learning rate is recorded.

        It is the largest group. If every group has one parameter, it is a group with the most
        common learning rate.
        """
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self):
        """Records the learning rate and steps the scheduler."""
        rate = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self):
        """The scheduler in use."""
        return self._scheduler or self.trainer.scheduler

    def state_dict(self):
        """Returns the state of the scheduler."""
        return self.scheduler.state_dict() if isinstance(self.scheduler, _LRScheduler) else {}

    def load_state_dict(self, state_dict):
        """Loads the state of the scheduler."""
        if isinstance(self.scheduler, _LRScheduler):
            logging.getLogger(__name__).info("Loading the state of the learning rate scheduler")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Runs an evaluation periodically and after training.

    All processes must have it, because they synchronize after the evaluation.

    Args:
        eval_period: Number of iterations between two evaluations; 0 evaluates after training only.
        eval_function: Function without arguments that returns a nested dict of numbers, or None.
        eval_after_train: Whether to evaluate after the last iteration.
    """

    def __init__(self, eval_period, eval_function, eval_after_train=True):
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self) -> None:
        results = self._func()
        if results:
            assert isinstance(results, dict), (
                f"eval_function of EvalHook must return a dict or None, got {results!r}"
            )
            scalars = {}
            for name, value in flatten_results_dict(results).items():
                try:
                    scalars[name] = float(value)
                except Exception as e:
                    raise ValueError(
                        "eval_function of EvalHook must return a nested dict of float, got "
                        f"{value!r} for {name!r}"
                    ) from e
            self.trainer.storage.put_scalars(**scalars, smoothing_hint=False)
        # An evaluation on rank 0 only may take longer than the timeout of collectives.
        comm.synchronize()

    def after_step(self):
        """Evaluates if the period is complete."""
        if _is_due(self.trainer, self._period) and not _is_last(self.trainer):
            self._do_eval()

    def after_train(self):
        """Evaluates after the last iteration."""
        if self._eval_after_train and _is_last(self.trainer):
            self._do_eval()
        # The function often holds a reference to the trainer.
        self._func = None


class PreciseBN(HookBase):
    """Replaces the running statistics of batch norms by averages over many batches.

    Args:
        period: Number of iterations between two updates; 0 updates after training only.
        model: Model whose batch norms in training mode are updated.
        data_loader: Iterable of inputs of the model.
        num_iter: Number of batches.
    """

    def __init__(self, period, model, data_loader, num_iter):
        self._logger = logging.getLogger(__name__)
        self._period = period
        self._model = model
        self._num_iter = num_iter
        # a generator, so that the loader starts with the first batch
        self._batches = (batch for source in (data_loader,) for batch in source)
        self._enabled = bool(get_bn_modules(model))
        if not self._enabled:
            self._logger.info(
                "PreciseBN is disabled because the model has no batch norms in training mode."
            )

    def after_step(self):
        """Updates the statistics if the period is complete."""
        if _is_last(self.trainer) or _is_due(self.trainer, self._period):
            self.update_stats()

    def update_stats(self):
        """Runs the model on the next batches and stores the averaged statistics."""
        if not self._enabled:
            return
        self._logger.info(f"Running precise-BN for {self._num_iter} iterations...")
        # keeps metrics of the forward passes out of the storage of the training
        with EventStorage():
            update_bn_stats(self._model, self._batches_with_log(), self._num_iter)

    def _batches_with_log(self):
        for count, batch in enumerate(self._batches, start=1):
            if count % 100 == 0:
                self._logger.info(f"Running precise-BN ... {count}/{self._num_iter} iterations.")
            yield batch
