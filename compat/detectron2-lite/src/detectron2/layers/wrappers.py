# SPDX-License-Identifier: Apache-2.0
"""PyTorch operators extended for empty inputs, tracing, and fused normalization."""

from collections.abc import Callable
from typing import List, Optional  # noqa: UP035  TorchScript reads these annotations

import torch
from torch.nn import functional as F

BatchNorm2d = torch.nn.BatchNorm2d
ConvTranspose2d = torch.nn.ConvTranspose2d
Linear = torch.nn.Linear
interpolate = torch.nn.functional.interpolate


def shapes_to_tensor(
    x: List[int],  # noqa: UP006
    device: Optional[torch.device] = None,  # noqa: UP045
) -> torch.Tensor:
    """Converts sizes to a 1-d tensor and keeps them dynamic in a trace."""
    if not torch.jit.is_scripting() and torch.jit.is_tracing():
        # Tensor.shape yields tensors while tracing; as_tensor would make constants of them.
        assert all(isinstance(size, torch.Tensor) for size in x), "shapes must be traced as tensors"
        stacked = torch.stack(x)
        return stacked if device is None else stacked.to(device)
    return torch.as_tensor(x, device=device)


def cat(tensors: List[torch.Tensor], dim: int = 0) -> torch.Tensor:  # noqa: UP006
    """Concatenates tensors; a single tensor is returned without a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def empty_input_loss_func_wrapper(loss_func: Callable) -> Callable:
    """Wraps a loss function so that its mean over an empty batch is 0 instead of NaN.

    The 0 depends on the input, so that every parameter still receives a gradient.
    """

    def loss_or_zero(input, target, *, reduction="mean", **kwargs):
        if reduction != "mean" or target.numel() > 0:
            return loss_func(input, target, reduction=reduction, **kwargs)
        return 0.0 * input.sum()

    return loss_or_zero


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


class Conv2d(torch.nn.Conv2d):
    """A convolution followed by an optional normalization and activation.

    It takes the arguments of ``torch.nn.Conv2d`` and two keyword arguments: ``norm``, a module, and
    ``activation``, a callable.
    """

    def __init__(self, *args, **kwargs):
        norm, activation = (kwargs.pop(name, None) for name in ("norm", "activation"))
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x):
        """Applies convolution, normalization and activation."""
        # TorchScript cannot compile the isinstance below.
        if not torch.jit.is_scripting() and x.numel() == 0 and self.training:
            assert not isinstance(self.norm, torch.nn.SyncBatchNorm), (
                f"an empty batch {tuple(x.shape)} cannot be normalized by SyncBatchNorm"
            )
        # The name and not super(), which TorchScript does not know.
        y = self._conv_forward(x, self.weight, self.bias)
        y = y if self.norm is None else self.norm(y)
        return y if self.activation is None else self.activation(y)


def nonzero_tuple(x):
    """Returns ``x.nonzero(as_tuple=True)``; TorchScript can compile it, too."""
    if not torch.jit.is_scripting():
        return x.nonzero(as_tuple=True)
    # a list in TorchScript; a 0-d tensor counts as one element, as with as_tuple
    return torch.nonzero(torch.atleast_1d(x)).unbind(dim=1)


@torch.jit.script_if_tracing
def move_device_like(src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """Moves ``src`` to the device of ``dst``; a trace records the move, not the device."""
    return src.to(dst.device)
