# SPDX-License-Identifier: Apache-2.0
"""Hooks for checkpoints: exact resuming, a clean end on signals, and the best model."""

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
from person_search.utils.weight_files import write_card

# SIGHUP: the terminal was closed; Windows has no such signal
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class ResumableCheckpointer(PeriodicCheckpointer):
    """Writes checkpoints from which a training continues as if it had never stopped.

    In addition to what Detectron2 saves, a checkpoint holds the random number state of every
    process and the state of the sampler. Must be registered in all processes; the main one writes.

    - Weights that are not finite are not saved: the training ends with its last checkpoint intact.
    - A failed write (disk full) is logged as an error and the training continues, since the next
      write may succeed. At the last iteration, it ends the program.
    - With ``stop_on_signal``, the first Ctrl-C, SIGTERM or SIGHUP finishes the iteration, writes a
      checkpoint and exits with status 128 + signal. The second one exits at once.

    Args:
        checkpointer: Checkpointer that saves the state of the trainer among others.
        period: Number of iterations between two checkpoints.
        stop_on_signal: Whether to handle signals as above.
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
        """Returns the random number states and the state of the sampler."""
        sampler = self._sampler()
        return {
            "rng": self._rng_states or [get_rng_state()],
            "sampler": sampler.state_dict() if sampler else {},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until the first step, when everything else has been built."""
        self._loaded = state_dict

    def _sampler(self) -> ResumableBatchSampler | None:
        sampler = getattr(self.trainer.data_loader, "batch_sampler", None)
        return sampler if isinstance(sampler, ResumableBatchSampler) else None

    def _restore(self) -> None:
        state, self._loaded = self._loaded or {}, None
        if sampler := self._sampler():
            differing = sampler.resume(state.get("sampler", {}), self.trainer.start_iter)
            if differing:
                self._logger.warning(
                    "Resuming with another %s: the order of the samples differs from that of an "
                    "uninterrupted run.",
                    ", ".join(differing),
                )
        rng = state.get("rng", [])
        if len(rng) == comm.get_world_size():
            set_rng_state(rng[comm.get_rank()])
        else:
            self._logger.warning(
                "The checkpoint has the random number state of %d processes, but this run has %d: "
                "it continues with other random numbers.",
                len(rng),
                comm.get_world_size(),
            )

    # ---- hook --------------------------------------------------------------------------------
    def before_train(self) -> None:
        """Installs the signal handlers."""
        super().before_train()
        if self._stop_on_signal and threading.current_thread() is threading.main_thread():
            # A signal that is ignored (nohup, a shell's background job) stays ignored.
            heard = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
            self._old_handlers = {n: signal.signal(n, self._on_signal) for n in heard}

    def before_step(self) -> None:
        """Restores the loaded state at the first step of a resumed training."""
        if self.trainer.iter == self.trainer.start_iter and self.trainer.start_iter > 0:
            self._restore()

    def after_step(self) -> None:
        """Writes a checkpoint if one is due, and ends the training on a signal."""
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
                self._logger.error("%s The training continues.", e)
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
        """Restores the signal handlers."""
        self._restore_handlers()

    def _stop_unless_finite(self) -> None:
        model = self.trainer.model
        if not true_in_all_processes(all_finite(list(model.parameters()))):
            stop_training(
                "The weights are not finite and are not saved,",
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
            "%s: ending after this iteration; a second signal ends at once.",
            signal.Signals(number).name,
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
    """Keeps the weights with the highest value of a metric as ``model_best.pth``.

    Must be registered after the ``EvalHook`` of the same period. ``model_best.json`` records the
    value, so that a resumed training knows it. Unlike Detectron2's ``BestCheckpointer``, a full
    disk does not stop the training.

    Args:
        period: Number of iterations between evaluations, as in the ``EvalHook``.
        checkpointer: Checkpointer built with ``tag_last=False``, so that ``last_checkpoint`` does
            not name these weights.
        metric: Name of the scalar, for example ``search/mAP``. A value of nan is never the best.
    """

    NAME = "model_best"

    def __init__(self, period: int, checkpointer: AtomicCheckpointer, metric: str) -> None:
        self.period, self.checkpointer, self.metric = period, checkpointer, metric
        self.best_value: float | None = None

    def before_train(self) -> None:
        """Reads the best value so far of a resumed training."""
        path = self._record_path()
        if self.trainer.start_iter > 0 and os.path.isfile(path):
            with open(path) as file:
                record = json.load(file)
            if record["metric"] == self.metric:
                self.best_value = record["value"]

    def after_step(self) -> None:
        """Keeps the weights if they were evaluated and are the best."""
        done = self.trainer.iter + 1
        if self.period > 0 and done % self.period == 0 and done < self.trainer.max_iter:
            self._keep_if_best()

    def after_train(self) -> None:
        """Does the same after the last iteration; an interrupted training was not evaluated."""
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
            # The old value is kept, so that the next better model is saved.
            logging.getLogger(__name__).error("%s The training continues.", e)
            return
        self.best_value = value
        logging.getLogger(__name__).info("Best %s so far: %.2f.", self.metric, value)

    def _record_path(self) -> str:
        return os.path.join(self.checkpointer.save_dir, f"{self.NAME}.json")


class FinalCardWriter(HookBase):
    """Adds the results of the last evaluation to the model card of the final weights.

    Must be registered after the ``EvalHook``: the weights are on disk before they are evaluated.

    Args:
        checkpointer: Checkpointer whose ``card`` has the results.
        name: File name of the final weights.
    """

    def __init__(self, checkpointer: AtomicCheckpointer, name: str) -> None:
        self.checkpointer, self.name = checkpointer, name

    def after_train(self) -> None:
        """Rewrites the file after a finished training."""
        card, path = self.checkpointer.card, os.path.join(self.checkpointer.save_dir, self.name)
        if self.trainer.iter + 1 < self.trainer.max_iter or card is None or not card.metrics:
            return
        try:
            write_card(path, card)
        except OSError as e:  # the file is as before, and the log has the results
            logging.getLogger(__name__).error("Could not add the results to %r: %s", path, e)
