# SPDX-License-Identifier: Apache-2.0
"""Calculates the memory of a training step on a GPU without a GPU, on tensors without data.

With ``FakeTensorMode``, PyTorch runs the forward and backward pass on shapes only.
:class:`LiveMemory` sums the storages that exist at each moment, as a GPU has to hold them.
"""

import copy
import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all storages that operations create while it is active.

    Attributes:
        now: Bytes of the existing storages.
        peak: Largest value of ``now``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result

    def add(self, tensor: Tensor) -> None:
        """Counts the storage of a tensor until it is freed; once for all of its views."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def freed(_: weakref.ref) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step.

    Attributes:
        parameters: Weights and buffers.
        gradients: Gradients of the trainable weights.
        optimizer: State of the optimizer, two values per trainable weight (Adam).
        activations: Further memory at the peak of the step: features, their gradients, and weights
            cast to half precision.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def simulate_training(
    module: nn.Module, step: Callable[[nn.Module], Tensor], *, amp: bool = False
) -> TrainingMemory:
    """Runs one forward and backward pass on tensors without data.

    Args:
        module: Module, which is not changed; a copy without data is used.
        step: Function of that copy that returns a scalar. It creates its inputs itself, on the
            CPU, and must not branch on values.
        amp: Whether to calculate as under ``torch.autocast("cuda", torch.float16)``.

    Returns:
        Memory of a GPU, without the CUDA context, workspaces of its libraries and fragmentation.
    """
    with FakeTensorMode(), LiveMemory() as memory:
        module = _without_data(module)
        tensors = [*module.parameters(), *module.buffers()]
        before = memory.now
        with _gpu_precision():
            with torch.autocast("cpu", torch.float16, enabled=amp):
                loss = step(module)
            loss.backward()
    trainable = [p for p in module.parameters() if p.requires_grad]
    gradients = sum(_size(p.grad) for p in trainable if p.grad is not None)
    parameters = sum(map(_size, tensors))
    return TrainingMemory(
        parameters=parameters,
        gradients=gradients,
        optimizer=2 * sum(map(_size, trainable)),
        activations=max(memory.peak - before - gradients, 0),
    )


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _without_data(module: nn.Module) -> nn.Module:
    """Returns a copy of a module; must be called in ``FakeTensorMode``."""
    tensors = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    memo: dict[int, Tensor] = {}
    for key, tensor in tensors.items():
        empty = torch.empty(tensor.shape, dtype=tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        memo[key] = empty
    return copy.deepcopy(module, memo)


# ---- mixed precision ---------------------------------------------------------------------------
_FLOAT32_OPERATIONS = (
    (F, "layer_norm"),
    (F, "group_norm"),
    (F, "softmax"),
    (torch, "softmax"),
    (Tensor, "softmax"),
)
"""Operations that autocast runs in float32 on a GPU, but not on a CPU."""


@contextmanager
def _gpu_precision() -> Iterator[None]:
    """Makes autocast on the CPU use the precision of a GPU.

    Must also be active in the backward pass, where activation checkpointing recomputes blocks.
    """

    def in_float32(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(tensor: Tensor, *args, **kwargs) -> Tensor:
            on = torch.is_autocast_enabled("cpu")
            return function(tensor.float() if on else tensor, *args, **kwargs)

        return run

    with ExitStack() as stack:
        for owner, name in _FLOAT32_OPERATIONS:
            replacement = in_float32(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield
