# SPDX-License-Identifier: Apache-2.0
"""The training loop, its hooks, and the step of plain and of mixed precision training."""

import concurrent.futures
import logging
import time
import weakref
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from detectron2.utils.logger import _log_api_usage
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["HookBase", "TrainerBase", "SimpleTrainer", "AMPTrainer"]


class HookBase:
    """Something that acts at fixed points of the training.

    In the order of calls: `before_train`, then in each iteration `before_step`, `after_backward`,
    `after_step`, and at the end, also after an error, `after_train`. Slow work belongs into
    `after_step`, so that timers, which run from `before_step`, do not count it.
    """

    trainer: "TrainerBase" = None
    """The trainer this hook is registered with; a weak reference."""

    def before_train(self):
        """Before the first iteration."""

    def after_train(self):
        """After the last iteration."""

    def before_step(self):
        """Before each iteration."""

    def after_backward(self):
        """After each backward pass, before the optimizer's step."""

    def after_step(self):
        """After each iteration."""

    def state_dict(self):
        """What has to go into checkpoints. Hooks that save also define `load_state_dict`."""
        return {}


@contextmanager
def _log_errors():
    """Put an error into the log file at once; the interpreter prints it only at exit."""
    try:
        yield
    except Exception:
        logging.getLogger(__name__).exception("Training stopped by an error:")
        raise


class TrainerBase:
    """A loop over `run_step` with hooks around it.

    `max_iter` and `storage` exist once `train` has begun.

    Attributes:
        iter: the current iteration, from 0; after the loop, the number of iterations.
        start_iter: where the loop started.
        max_iter: where it ends.
        storage: the metrics, open while the loop runs.
    """

    max_iter: int
    storage: EventStorage

    def __init__(self) -> None:
        self.iter = self.start_iter = 0
        self._hooks: list[HookBase] = []
        _log_api_usage(f"trainer.{type(self).__name__}")

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Append hooks; None entries are skipped, which eases optional ones."""
        for hook in hooks:
            if hook is None:
                continue
            assert isinstance(hook, HookBase), f"{hook!r} is no HookBase"
            # Weak, so that the pair is freed without waiting for the garbage collector.
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int):
        """Run the iterations `start_iter` to `max_iter - 1`."""
        logging.getLogger(__name__).info(f"Starting training from iteration {start_iter}")
        self.start_iter, self.max_iter = start_iter, max_iter
        self.iter = start_iter
        with EventStorage(start_iter) as storage, ExitStack() as at_the_end:
            self.storage = storage
            at_the_end.callback(self.after_train)
            at_the_end.enter_context(_log_errors())
            self._run_iterations()

    def _run_iterations(self) -> None:
        self.before_train()
        for iteration in range(self.start_iter, self.max_iter):
            self.iter = iteration
            self.before_step()
            self.run_step()
            self.after_step()
        # One past the last: tells after_train a finished training from one that broke off.
        self.iter += 1

    def before_train(self):
        for hook in self._hooks:
            hook.before_train()

    def after_train(self):
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self):
        # Code without access to the trainer reads the iteration from the storage.
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self):
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self):
        for hook in self._hooks:
            hook.after_step()

    def run_step(self):
        raise NotImplementedError

    def state_dict(self):
        state = {"iteration": self.iter}
        hooks: dict[str, dict] = {}
        for hook in self._hooks:
            hook_state = hook.state_dict()
            # Hooks are told apart by class: of two of one class, the first is saved.
            if hook_state:
                hooks.setdefault(type(hook).__qualname__, hook_state)
        if hooks:
            state["hooks"] = hooks
        return state

    def load_state_dict(self, state_dict):
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
    """One model, one optimizer, one data source: forward, backward, step.

    The model takes what the loader gives and returns a dict of losses, or one loss. Their sum is
    minimized. Everything else, learning rate and checkpoints included, is left to hooks.
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
        """
        Args:
            model: a module; it is put into training mode.
            data_loader: an iterable of inputs, endless or long enough.
            optimizer: a PyTorch optimizer.
            gather_metric_period: iterations between two collections of metrics from all ranks.
            zero_grad_before_forward: clear gradients before the forward pass, not after it.
            async_write_metrics: write metrics in a thread; the device need not be waited for.
        """
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self._data_loader_iter_obj = None
        # One worker keeps the order of the iterations.
        self.concurrent_executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)

    def run_step(self):
        self._check_ready()
        loss, loss_dict, data_time = self._compute_loss()
        self._backward(loss)
        self.after_backward()
        self._record(loss_dict, data_time)
        self._update()

    def _check_ready(self) -> None:
        assert self.model.training, (
            f"{type(self).__name__}: the model is in eval mode; whoever switched it, an "
            "evaluation for example, has to switch it back by model.train()"
        )

    def _compute_loss(self) -> tuple[torch.Tensor, dict[str, torch.Tensor], float]:
        """What comes before the backward pass.

        Returns:
            The loss to minimize, the losses to report, and the seconds that the data took.
        """
        data, data_time = self._next_data()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
            loss, loss_dict = self._forward(data)
        else:
            loss, loss_dict = self._forward(data)
            self.optimizer.zero_grad()
        return loss, loss_dict, data_time

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()

    def _next_data(self):
        """The next inputs, and the seconds they took."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        return data, time.perf_counter() - start

    def _forward(self, data) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Run the model; gives the loss to minimize and the losses to report."""
        loss_dict = self.model(data)
        if isinstance(loss_dict, torch.Tensor):
            return loss_dict, {"total_loss": loss_dict}
        return sum(loss_dict.values()), loss_dict

    def _record(self, loss_dict, data_time: float) -> None:
        # The iteration by value: the thread may run when the loop has gone on.
        write = partial(self._write_metrics, loss_dict, data_time, iter=self.iter)
        if self.async_write_metrics:
            self.concurrent_executor.submit(write)
        else:
            write()

    @property
    def _data_loader_iter(self):
        # Made at the first use: starting the loader's workers takes a while.
        running = self._data_loader_iter_obj
        if running is None:
            running = self._data_loader_iter_obj = iter(self.data_loader)
        return running

    def reset_data_loader(self, data_loader_builder):
        """Replace the loader by what `data_loader_builder()` returns.

        The old one is let go first, so that two sets of workers never exist together.
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
            # In a thread the error itself would get lost.
            logging.getLogger(__name__).exception(
                f"Could not write the metrics of iteration {iteration}:"
            )
            raise

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        cur_iter: int,
        prefix: str = "",
    ) -> None:
        """Put the losses, averaged over the ranks, and the slowest rank's data time.

        Args:
            loss_dict: name -> scalar tensor.
            data_time: seconds that this rank waited for data.
            cur_iter: iteration of the values.
            prefix: before the name of the total loss.

        Raises:
            FloatingPointError: the sum of the losses is infinite or nan.
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        metrics = {name: value.detach().cpu().item() for name, value in loss_dict.items()}
        gathered = comm.gather((data_time, metrics))
        if not comm.is_main_process():
            return
        # Everybody waits for the slowest.
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
        # First the pending writes, then the hooks that write them out.
        self.concurrent_executor.shutdown(wait=True)
        super().after_train()

    def state_dict(self):
        state = super().state_dict()
        state["optimizer"] = self.optimizer.state_dict()
        return state

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """`SimpleTrainer` with PyTorch's automatic mixed precision; needs a CUDA device."""

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
        """
        Args:
            model ... zero_grad_before_forward, async_write_metrics: as in `SimpleTrainer`.
            grad_scaler: a PyTorch GradScaler; a new one by default.
            precision: type to compute in.
            log_grad_scaler: put the scale as the metric "[metric]grad_scaler".
        """
        several_devices = isinstance(model, DataParallel) or (
            isinstance(model, DistributedDataParallel)
            and model.device_ids is not None
            and len(model.device_ids) > 1
        )
        assert not several_devices, (
            "AMPTrainer needs a process for each device; this model is spread over several"
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
        assert torch.cuda.is_available(), "AMPTrainer needs a CUDA device; there is none"

    def state_dict(self):
        state = super().state_dict()
        state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        # A scaler on a machine without CUDA is disabled and saves nothing.
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
