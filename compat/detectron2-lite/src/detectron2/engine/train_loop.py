# SPDX-License-Identifier: Apache-2.0
"""The training loop with hooks, and trainers with full and with mixed precision."""

import concurrent.futures
import logging
import time
import weakref
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from detectron2.utils.logger import _log_api_usage
from torch.nn.parallel import DataParallel, DistributedDataParallel


class HookBase:
    """Base class of hooks, whose methods are called during training.

    The order of the calls is ``before_train``; in each iteration ``before_step``,
    ``after_backward`` and ``after_step``; finally, also after an error, ``after_train``. Slow work
    should be done in ``after_step``, so that the time of ``before_step`` stays small.
    """

    trainer: "TrainerBase" = None
    """Weak reference to the trainer with which the hook is registered."""

    def before_train(self):
        """Called before the first iteration."""

    def after_train(self):
        """Called after the last iteration."""

    def before_step(self):
        """Called before each iteration."""

    def after_backward(self):
        """Called after each backward pass, before the step of the optimizer."""

    def after_step(self):
        """Called after each iteration."""

    def state_dict(self):
        """Returns the state for checkpoints; hooks with a state define ``load_state_dict``."""
        return {}


class TrainerBase:
    """A training loop over ``run_step`` with hooks.

    Attributes:
        iter: Current iteration, from 0; after the loop, the number of iterations.
        start_iter: First iteration.
        max_iter: Number of iterations; set by ``train``.
        storage: ``EventStorage`` of the metrics; set by ``train``.
    """

    max_iter: int
    storage: EventStorage

    def __init__(self) -> None:
        self.iter = self.start_iter = 0
        self._hooks: list[HookBase] = []
        _log_api_usage(f"trainer.{type(self).__name__}")

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Registers hooks; None entries are skipped."""
        for hook in hooks:
            if hook is None:
                continue
            assert isinstance(hook, HookBase), f"{hook!r} is not a HookBase"
            # A weak reference avoids a reference cycle.
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int):
        """Runs the iterations ``start_iter`` to ``max_iter - 1``."""
        logger = logging.getLogger(__name__)
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for iteration in range(start_iter, max_iter):
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # Hooks recognize a completed training by iter == max_iter.
                self.iter += 1
            except Exception:
                logger.exception("Training stopped with an error:")
                raise
            finally:
                self.after_train()

    def before_train(self):
        """Calls ``before_train`` of the hooks."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self):
        """Calls ``after_train`` of the hooks."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self):
        """Calls ``before_step`` of the hooks."""
        # The storage provides the iteration to code without access to the trainer.
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self):
        """Calls ``after_backward`` of the hooks."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self):
        """Calls ``after_step`` of the hooks."""
        for hook in self._hooks:
            hook.after_step()

    def run_step(self):
        """Runs one iteration. Subclasses define it."""
        raise NotImplementedError

    def state_dict(self):
        """Returns the iteration and the states of the hooks."""
        state = {"iteration": self.iter}
        hooks: dict[str, dict] = {}
        for hook in self._hooks:
            hook_state = hook.state_dict()
            # Hooks are identified by their class; the first of several is saved.
            if hook_state:
                hooks.setdefault(type(hook).__qualname__, hook_state)
        if hooks:
            state["hooks"] = hooks
        return state

    def load_state_dict(self, state_dict):
        """Loads the iteration and the states of the hooks."""
        self.iter = state_dict["iteration"]
        for name, hook_state in state_dict.get("hooks", {}).items():
            hook = next((h for h in self._hooks if type(h).__qualname__ == name), None)
            if hook is None:
                logging.getLogger(__name__).warning(
                    f"Cannot find the hook '{name}', its state_dict is ignored."
                )
            else:
                hook.load_state_dict(hook_state)


class SimpleTrainer(TrainerBase):
    """A trainer with one model, one optimizer and one data loader.

    The model takes a batch of the loader and returns a dict of losses, whose sum is minimized, or
    one loss. Everything else, including the learning rate schedule and checkpoints, is done by
    hooks.

    Args:
        model: Model to train; it is set to training mode.
        data_loader: Iterable of inputs, infinite or long enough.
        optimizer: PyTorch optimizer.
        gather_metric_period: Number of iterations between two gatherings of metrics.
        zero_grad_before_forward: Whether to reset gradients before the forward pass, not after it.
        async_write_metrics: Whether to write metrics in a thread, without waiting for the device.
    """

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        gather_metric_period=1,
        zero_grad_before_forward=False,
        async_write_metrics=False,
    ):
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self._data_loader_iter_obj = None
        # a single worker keeps the order of the iterations
        self.concurrent_executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)

    def run_step(self):
        """Runs one iteration: forward, backward, and the step of the optimizer."""
        self._check_ready()
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss, loss_dict = self._forward(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self._backward(loss)
        self.after_backward()
        # the iteration by value, because the thread may run after the next iteration has begun
        write = partial(self._write_metrics, loss_dict, data_time, iter=self.iter)
        if self.async_write_metrics:
            self.concurrent_executor.submit(write)
        else:
            write()
        self._update()

    def _check_ready(self) -> None:
        assert self.model.training, (
            f"{type(self).__name__}: the model is in eval mode; call model.train() after an "
            "evaluation"
        )

    def _forward(self, data) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Returns the loss to minimize and the losses to report."""
        loss_dict = self.model(data)
        if isinstance(loss_dict, torch.Tensor):
            return loss_dict, {"total_loss": loss_dict}
        return sum(loss_dict.values()), loss_dict

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()

    @property
    def _data_loader_iter(self):
        # created at the first use, because it starts the worker processes
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder):
        """Replaces the data loader by the result of ``data_loader_builder()``.

        The old loader is deleted first, so that its worker processes end.
        """
        del self.data_loader
        self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def _write_metrics(
        self,
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period:
            return
        try:
            SimpleTrainer.write_metrics(loss_dict, data_time, iteration, prefix)
        except Exception:
            # an exception in a thread is not visible otherwise
            logging.getLogger(__name__).exception(
                f"The metrics of iteration {iteration} were not written:"
            )
            raise

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        cur_iter: int,
        prefix: str = "",
    ) -> None:
        """Records the losses, averaged over the ranks, and the data time of the slowest rank.

        Args:
            loss_dict: Dict from name to scalar tensor.
            data_time: Seconds that this rank waited for data.
            cur_iter: Iteration of the values.
            prefix: Prefix of the name of the total loss.

        Raises:
            FloatingPointError: The sum of the losses is infinite or NaN.
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        metrics = {name: value.detach().cpu().item() for name, value in loss_dict.items()}
        gathered = comm.gather((data_time, metrics))
        if not comm.is_main_process():
            return
        # all ranks wait for the slowest one
        storage.put_scalar("data_time", max(time for time, _ in gathered), cur_iter=cur_iter)
        mean = {name: np.mean([m[name] for _, m in gathered]) for name in gathered[0][1]}
        total = sum(mean.values())
        if not np.isfinite(total):
            raise FloatingPointError(
                f"Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {mean}"
            )
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(mean) > 1:
            storage.put_scalars(cur_iter=cur_iter, **mean)

    def after_train(self):
        """Waits for pending metrics, then calls ``after_train`` of the hooks."""
        self.concurrent_executor.shutdown(wait=True)
        super().after_train()

    def state_dict(self):
        """Returns the state of the trainer, its hooks, and its optimizer."""
        state = super().state_dict()
        state["optimizer"] = self.optimizer.state_dict()
        return state

    def load_state_dict(self, state_dict):
        """Loads the state of the trainer, its hooks, and its optimizer."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """``SimpleTrainer`` with PyTorch's automatic mixed precision. It needs a CUDA device.

    Args:
        model: See ``SimpleTrainer``.
        data_loader: See ``SimpleTrainer``.
        optimizer: See ``SimpleTrainer``.
        gather_metric_period: See ``SimpleTrainer``.
        zero_grad_before_forward: See ``SimpleTrainer``.
        grad_scaler: PyTorch ``GradScaler``; by default a new one.
        precision: Data type of the computation.
        log_grad_scaler: Whether to record the scale as the scalar "[metric]grad_scaler".
        async_write_metrics: See ``SimpleTrainer``.
    """

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        gather_metric_period=1,
        zero_grad_before_forward=False,
        grad_scaler=None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics=False,
    ):
        several_devices = isinstance(model, DataParallel) or (
            isinstance(model, DistributedDataParallel)
            and model.device_ids is not None
            and len(model.device_ids) > 1
        )
        assert not several_devices, (
            "AMPTrainer supports one device per process; this model uses several"
        )
        super().__init__(
            model,
            data_loader,
            optimizer,
            gather_metric_period,
            zero_grad_before_forward,
            async_write_metrics=async_write_metrics,
        )
        self.grad_scaler = torch.amp.GradScaler("cuda") if grad_scaler is None else grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def _forward(self, data):
        with torch.autocast("cuda", dtype=self.precision):
            return super()._forward(data)

    def _backward(self, loss: torch.Tensor) -> None:
        scaler = self.grad_scaler
        scaler.scale(loss).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", scaler.get_scale())

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _check_ready(self) -> None:
        super()._check_ready()
        assert torch.cuda.is_available(), "AMPTrainer needs a CUDA device"

    def state_dict(self):
        """Returns the state of the trainer, including the gradient scaler."""
        state = super().state_dict()
        state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict):
        """Loads the state of the trainer, including the gradient scaler."""
        super().load_state_dict(state_dict)
        # without CUDA, the scaler is disabled and its state is empty
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
