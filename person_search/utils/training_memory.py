# SPDX-License-Identifier: Apache-2.0
"""Memory of a training step without the device, and without the work: on tensors without data.

Under ``FakeTensorMode`` PyTorch runs forward and backward on shapes alone. :class:`LiveMemory` adds
up which storages exist at each moment, as the allocator of a GPU would have to hold them.
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
    """Counts the bytes of all storages that operations make while it is active.

    Attributes:
        now: bytes alive. peak: the most that were alive at once.
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
        """Counts the storage of a tensor until it is freed; once, however many views it has."""
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

    Args:
        parameters: weights and buffers. gradients: of the trainable weights.
        optimizer: its state, two values per trainable weight (Adam).
        activations: what the worst moment of the step needs beyond these three: features, their
            gradients, and weights cast to half precision.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def simulate_training(
    module: nn.Module, step: Callable[[nn.Module], Tensor], *, amp: bool = False
) -> TrainingMemory:
    """Runs one forward and backward pass on tensors without data.

    Args:
        module: stays untouched; a copy without data takes its place.
        step: gets that copy and returns a scalar; makes its inputs itself, on the CPU. It must not
            branch on values, since there are none.
        amp: as under ``torch.autocast("cuda", torch.float16)``.

    Returns:
        What a GPU would hold. Not in it: the CUDA context, workspaces of its libraries, and what is
        lost to fragmentation.
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
    """A copy of a module; called under ``FakeTensorMode``."""
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
"""On a GPU, autocast runs these in float32; on a CPU it leaves them alone."""


@contextmanager
def _gpu_precision() -> Iterator[None]:
    """Gives the autocast of the CPU the precision that a GPU's has.

    To be active in the backward pass as well, where activation checkpointing runs blocks again.
    """

    def in_float32(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(tensor: Tensor, *args, **kwargs) -> Tensor:
            return function(tensor.float() if autocast_on() else tensor, *args, **kwargs)

        return run

    def autocast_on() -> bool:
        return torch.is_autocast_enabled("cpu")

    with ExitStack() as stack:
        for owner, name in _FLOAT32_OPERATIONS:
            replacement = in_float32(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield
