# SPDX-License-Identifier: Apache-2.0
"""Hooks for checkpoints: exact resuming, a clean end on signals, the best model so far."""

import json
import logging
import math
import os
import signal
import threading
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.utils import comm
from torch import distributed as dist

from person_search.data.samplers import ResumableBatchSampler
from person_search.engine.checkpoint import (
    AtomicCheckpointer,
    CheckpointWriteError,
    write_safely,
)
from person_search.engine.divergence import (
    all_finite,
    stop_training,
    true_in_all_processes,
    weights_report,
)
from person_search.engine.rng import get_rng_state, set_rng_state

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ResumableCheckpointer(PeriodicCheckpointer):
    """Writes checkpoints from which a training continues as if it had never stopped.

    Beside what Detectron2 saves, a checkpoint holds the random number state of every process and
    what fixes the order of samples. Must be registered in all processes (only the main one writes).

    Weights that are not finite are not saved: the training ends, and the last checkpoint is still
    one to go on from.

    A write that fails (disk full) is logged as an error and the training goes on: the next one may
    succeed, and the weights are still in memory. Only at the last iteration it ends the program.

    With ``stop_on_signal``, the first Ctrl-C or SIGTERM lets the iteration finish, writes a
    checkpoint and ends the program with exit status 128 + signal; the second one ends it at once.

    Args:
        checkpointer: saves the trainer's state among others.
        period: iterations between two checkpoints.
        stop_on_signal: see above.
    """

    def __init__(self, checkpointer: AtomicCheckpointer, period: int, stop_on_signal: bool = True):
        super().__init__(checkpointer, period)
        self._stop_on_signal = stop_on_signal
        self._signal = 0
        self._old_handlers: dict[int, Any] = {}
        self._rng_states: list[dict[str, Any]] = []
        self._loaded: dict[str, Any] | None = None
        self._logger = logging.getLogger(__name__)

    # ---- state -------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        sampler = self._sampler()
        return {
            "rng": self._rng_states or [get_rng_state()],
            "sampler": sampler.state_dict() if sampler else {},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict  # put in place at the first step, when all else is built

    def _sampler(self) -> ResumableBatchSampler | None:
        sampler = getattr(self.trainer.data_loader, "batch_sampler", None)
        return sampler if isinstance(sampler, ResumableBatchSampler) else None

    def _restore(self) -> None:
        state, self._loaded = self._loaded or {}, None
        if sampler := self._sampler():
            differing = sampler.resume(state.get("sampler", {}), self.trainer.start_iter)
            if differing:
                self._logger.warning(
                    "Resuming with another %s: the samples come in another order than in a run "
                    "without interruption.",
                    ", ".join(differing),
                )
        rng = state.get("rng", [])
        if len(rng) == comm.get_world_size():
            set_rng_state(rng[comm.get_rank()])
        else:
            self._logger.warning(
                "The checkpoint has the random number state of %d processes and this run has %d: "
                "it continues with new random numbers.",
                len(rng),
                comm.get_world_size(),
            )

    # ---- hook --------------------------------------------------------------------------------
    def before_train(self) -> None:
        super().before_train()
        if self._stop_on_signal and threading.current_thread() is threading.main_thread():
            # A signal that is ignored (nohup, a shell's background job) stays ignored.
            heard = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
            self._old_handlers = {n: signal.signal(n, self._on_signal) for n in heard}

    def before_step(self) -> None:
        if self.trainer.iter == self.trainer.start_iter and self.trainer.start_iter > 0:
            self._restore()

    def after_step(self) -> None:
        iteration = self.trainer.iter
        stop = self._agreed_signal()
        last = iteration >= self.max_iter - 1
        due = last or (iteration + 1) % self.period == 0
        if due or stop:
            self._stop_unless_finite()
            self._rng_states = comm.gather(get_rng_state())  # [] in all but the main process
            try:
                if due:
                    self.step(iteration)
                else:
                    self.save(f"{self.file_prefix}_{iteration:07d}", iteration=iteration)
            except CheckpointWriteError as e:
                if last or stop:
                    raise
                self._logger.error("%s The training goes on.", e)
            finally:
                self._rng_states = []
        if stop and not last:
            self._logger.warning(
                "Stopped by %s after iteration %d; continue with --resume.",
                signal.Signals(stop).name,
                iteration,
            )
            raise SystemExit(128 + stop)

    def after_train(self) -> None:
        self._restore_handlers()

    def _stop_unless_finite(self) -> None:
        model = self.trainer.model
        if not true_in_all_processes(all_finite(list(model.parameters()))):
            stop_training(
                "The weights are not finite, and so are not saved,",
                iteration=self.trainer.iter,
                output_dir=self.checkpointer.save_dir,
                learning_rate=self.trainer.optimizer.param_groups[0]["lr"],
                report=weights_report(model),
            )

    # ---- signals -----------------------------------------------------------------------------
    def _on_signal(self, number: int, frame: Any) -> None:
        self._signal = number
        self._restore_handlers()
        self._logger.warning(
            "%s: ending after this iteration. Once more ends at once.", signal.Signals(number).name
        )

    def _restore_handlers(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers = {}

    def _agreed_signal(self) -> int:
        """Returns the signal that any process has received, the same in all; 0 for none."""
        if not self._stop_on_signal or comm.get_world_size() == 1:
            return self._signal
        on_gpu = dist.get_backend() == dist.Backend.NCCL
        number = torch.tensor(self._signal, device="cuda" if on_gpu else "cpu")
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)


class BestModelCheckpointer(HookBase):
    """Keeps the weights with the highest value of a metric, over interruptions and failed writes.

    Register it after the ``EvalHook`` of the same period. The value stands in ``model_best.json``
    beside ``model_best.pth``, so that a resumed training goes on from it. Detectron2's own hook
    forgets it, and stops a training whose disk is full.

    Args:
        period: iterations between evaluations, that of the ``EvalHook``.
        checkpointer: saves the weights; built with ``tag_last=False``, so that ``last_checkpoint``
            does not point to them.
        metric: name of the scalar, e.g. ``search/mAP``. A value of nan is never the best.
    """

    NAME = "model_best"

    def __init__(self, period: int, checkpointer: AtomicCheckpointer, metric: str) -> None:
        self.period, self.checkpointer, self.metric = period, checkpointer, metric
        self.best_value: float | None = None

    def before_train(self) -> None:
        path = self._record_path()
        if self.trainer.start_iter > 0 and os.path.isfile(path):
            with open(path) as file:
                record = json.load(file)
            if record["metric"] == self.metric:
                self.best_value = record["value"]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self.period > 0 and done % self.period == 0 and done < self.trainer.max_iter:
            self._keep_if_best()

    def after_train(self) -> None:
        # A training that was interrupted has not been evaluated here.
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._keep_if_best()

    def _keep_if_best(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self.metric, (math.nan, -1))
        if math.isnan(value) or (self.best_value is not None and value <= self.best_value):
            return
        record = {"metric": self.metric, "value": value, "iteration": iteration}
        try:
            self.checkpointer.save(self.NAME, iteration=iteration)
            write_safely(self._record_path(), json.dumps(record).encode())
        except CheckpointWriteError as e:
            # The old value stays, so that the next better model is saved.
            logging.getLogger(__name__).error("%s The training goes on.", e)
            return
        self.best_value = value
        logging.getLogger(__name__).info("Best %s so far: %.2f.", self.metric, value)

    def _record_path(self) -> str:
        return os.path.join(self.checkpointer.save_dir, f"{self.NAME}.json")
