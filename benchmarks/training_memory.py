# SPDX-License-Identifier: Apache-2.0
"""Calculates the memory of a training step without a GPU.

Not a program; ``benchmark_psdiff.py`` is. Under ``FakeTensorMode`` PyTorch runs forward and
backward on shapes only. :class:`LiveMemory` sums up the storages that exist at each moment, as the
allocator of a GPU would have to hold them.
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
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import roi_align


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all storages that operations allocate while it is active.

    Attributes:
        now: Bytes currently allocated.
        peak: Maximum of ``now``.
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
        """Counts the storage of a tensor, once for all its views, until it is freed."""
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
    """Memory of one training step in bytes.

    Attributes:
        parameters: Weights and buffers.
        gradients: Gradients of the trainable weights.
        optimizer: Optimizer state, two values per trainable weight (Adam).
        activations: Peak memory beyond these three: features, their gradients, and weights cast to
            half precision.
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
        module: Module to simulate; it is left unchanged, a copy without data replaces it.
        step: Receives the copy and returns a scalar. It creates its inputs on the CPU and must not
            branch on values.
        amp: Simulates ``torch.autocast("cuda", torch.float16)``.

    Returns:
        Memory on a GPU without the CUDA context, workspaces of libraries and fragmentation.
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
    """Returns a copy of a module; called under ``FakeTensorMode``."""
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
"""Autocast runs these in float32 on a GPU, and leaves them unchanged on a CPU."""


@contextmanager
def _gpu_precision() -> Iterator[None]:
    """Gives the autocast of the CPU the precision of a GPU's.

    Must be active in the backward pass as well, where activation checkpointing re-runs blocks.
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


# ---- PSDiff ------------------------------------------------------------------------------------
class FinestLevelPooler(nn.Module):
    """Replaces Detectron2's pooler where boxes have no values to choose a level by.

    It allocates the tensors of the most expensive choice, the finest level for all boxes.
    """

    def __init__(self, pooler: ROIPooler) -> None:
        super().__init__()
        self.output_size = pooler.output_size

    def forward(self, features: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pools (N, C, H, W) per level at the boxes of each image, as ``ROIPooler``."""
        boxes = torch.cat([item.tensor for item in box_lists])
        shape = (len(boxes), features[0].shape[1], *self.output_size)
        result = features[0].new_zeros(shape)
        for level, feature in enumerate(features):
            count = 0 if level else len(boxes)
            rois = feature.new_zeros(count, 5)  # not empty(): the kernel trusts the image index
            pooled = roi_align(feature, rois, self.output_size, 1.0, 2, aligned=True)
            rows = torch.arange(count)
            result.index_put_((rows,), pooled.to(result.dtype))
        return result


def psdiff_training_memory(
    model: nn.Module, num_images: int, image_size: tuple[int, int], *, amp: bool
) -> TrainingMemory:
    """Calculates the peak memory of one training step of a PSDiff model.

    The losses are not included: their tensors have a few numbers per box and ground truth.

    Args:
        model: Model on the CPU in training mode; it is left unchanged.
        num_images: Images of the batch.
        image_size: Size (h, w) of the largest image, before padding.
        amp: Uses automatic mixed precision (float16).
    """
    divisor = model.backbone.size_divisibility or 1
    height, width = (-(-side // divisor) * divisor for side in image_size)
    channels, proposals = len(model.pixel_mean), model.num_proposals
    rows = num_images * model.train_draws

    def step(model: nn.Module) -> Tensor:
        features = model.backbone(torch.empty(num_images, channels, height, width))
        boxes = torch.empty(rows, proposals, 4)
        roi_feats = model.head.pool(features, boxes.view(num_images, -1, 4))
        roi_feats = roi_feats.view(rows, proposals, *roi_feats.shape[2:])
        signal = torch.empty(rows, proposals, model.embed_dim)
        t = torch.empty(rows, dtype=torch.int64)
        output = model.head.denoise(roi_feats, boxes, signal, t)
        return output.boxes.sum() + output.logits.sum() + output.reid_feats.sum()

    pooler = model.head.pooler
    try:
        model.head.pooler = FinestLevelPooler(pooler)
        return simulate_training(model, step, amp=amp)
    finally:
        model.head.pooler = pooler
