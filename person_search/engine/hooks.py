# SPDX-License-Identifier: Apache-2.0
"""Hooks for checkpoints: exact resuming, a clean end on signals, the best model so far."""

import json
import logging
import os
import signal
import threading
from typing import Any

import torch
from detectron2.engine.hooks import BestCheckpointer, PeriodicCheckpointer
from detectron2.utils import comm
from torch import distributed as dist

from person_search.data.samplers import ResumableBatchSampler
from person_search.engine.checkpoint import (
    AtomicCheckpointer,
    CheckpointWriteError,
    write_atomically,
)
from person_search.engine.rng import get_rng_state, set_rng_state

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ResumableCheckpointer(PeriodicCheckpointer):
    """Writes checkpoints from which a training continues as if it had never stopped.

    Beside what Detectron2 saves, a checkpoint holds the random number state of every process and
    what fixes the order of samples. Must be registered in all processes (only the main one writes).

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
            self._old_handlers = {n: signal.signal(n, self._on_signal) for n in SIGNALS}

    def before_step(self) -> None:
        if self.trainer.iter == self.trainer.start_iter and self.trainer.start_iter > 0:
            self._restore()

    def after_step(self) -> None:
        iteration = self.trainer.iter
        stop = self._agreed_signal()
        last = iteration >= self.max_iter - 1
        due = last or (iteration + 1) % self.period == 0
        if due or stop:
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


class BestModelCheckpointer(BestCheckpointer):
    """Detectron2's hook, remembering the best value over interruptions and failed writes.

    The value stands in ``<file_prefix>.json`` beside the weights. The file of weights holds the
    model only, and ``last_checkpoint`` does not point to it if the checkpointer was built with
    ``tag_last=False``.
    """

    def before_train(self) -> None:
        path = self._record_path()
        if self.trainer.start_iter > 0 and os.path.isfile(path):
            with open(path) as file:
                record = json.load(file)
            if record["metric"] == self._val_metric:
                self.best_metric, self.best_iter = record["value"], record["iteration"]

    def _best_checking(self) -> None:
        before = self.best_metric, self.best_iter
        try:
            super()._best_checking()
            if self.best_metric != before[0]:
                record = {
                    "metric": self._val_metric,
                    "value": self.best_metric,
                    "iteration": self.best_iter,
                }
                write_atomically(
                    self._record_path(), lambda file: file.write(json.dumps(record).encode())
                )
        except CheckpointWriteError as e:
            self.best_metric, self.best_iter = before  # so that the next better one is saved
            logging.getLogger(__name__).error("%s The training goes on.", e)

    def _record_path(self) -> str:
        return os.path.join(self._checkpointer.save_dir, f"{self._file_prefix}.json")
