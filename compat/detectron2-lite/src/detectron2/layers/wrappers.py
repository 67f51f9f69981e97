# SPDX-License-Identifier: Apache-2.0
"""PyTorch operators that also take empty input, can be traced, or fuse what follows them."""

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
    """Turns sizes into a 1-d tensor; in a trace they stay connected to where they come from."""
    if torch.jit.is_scripting():
        return torch.as_tensor(x, device=device)
    if torch.jit.is_tracing():
        # Tensor.shape yields tensors while tracing; as_tensor would read out their numbers.
        assert all(isinstance(size, torch.Tensor) for size in x), "shapes must be traced as tensors"
        stacked = torch.stack(x)
        return stacked if device is None else stacked.to(device)
    return torch.as_tensor(x, device=device)


def cat(tensors: List[torch.Tensor], dim: int = 0) -> torch.Tensor:  # noqa: UP006
    """``torch.cat`` that hands a single tensor back without a copy."""
    assert isinstance(tensors, (list, tuple))
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat(tensors, dim)


def empty_input_loss_func_wrapper(loss_func: Callable) -> Callable:
    """Makes the mean of ``loss_func(input, target, ...)`` over nothing 0 instead of nan.

    The 0 depends on the input, so that every parameter still receives a gradient.
    """

    def wrapped_loss_func(input, target, *, reduction="mean", **kwargs):
        if target.numel() == 0 and reduction == "mean":
            return input.sum() * 0.0
        return loss_func(input, target, reduction=reduction, **kwargs)

    return wrapped_loss_func


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


class Conv2d(torch.nn.Conv2d):
    """A convolution followed by an optional normalization and activation."""

    def __init__(self, *args, **kwargs):
        """Takes the arguments of ``torch.nn.Conv2d`` and two more.

        Args:
            *args: see ``torch.nn.Conv2d``.
            **kwargs: see ``torch.nn.Conv2d``; ``norm``, a module, and ``activation``, a callable.
        """
        norm = kwargs.pop("norm", None)
        activation = kwargs.pop("activation", None)
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x):
        # TorchScript compiles neither the isinstance below nor would it meet empty batches.
        if not torch.jit.is_scripting() and x.numel() == 0 and self.training:
            assert not isinstance(self.norm, torch.nn.SyncBatchNorm), (
                "SyncBatchNorm does not support empty inputs!"
            )
        x = F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


def nonzero_tuple(x):
    """``x.nonzero(as_tuple=True)`` that TorchScript compiles too."""
    if torch.jit.is_scripting():
        if x.dim() == 0:
            return x.unsqueeze(0).nonzero().unbind(1)
        return x.nonzero().unbind(1)
    return x.nonzero(as_tuple=True)


@torch.jit.script_if_tracing
def move_device_like(src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """Moves ``src`` to the device of ``dst``; a trace records the move and not the device."""
    return src.to(dst.device)
