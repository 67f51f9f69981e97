# SPDX-License-Identifier: Apache-2.0
"""Normalization layers and the names by which configs select them."""

from collections.abc import Callable

import torch
from detectron2._lite import absent
from torch import nn
from torch.nn import functional as F

__getattr__ = absent(__name__, "CycleBatchNormList", "NaiveSyncBatchNorm")


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization with fixed statistics and affine parameters.

    It computes ``(x - running_mean) / sqrt(running_var + eps) * weight + bias``, where all four are
    buffers that a checkpoint provides. A new layer is the identity.

    Args:
        num_features: Number of channels.
        eps: Value added to the variance.
    """

    # 2: checkpoints hold running_mean and running_var. 3: the version that Detectron2 writes.
    _version = 3

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        # with eps added, the divisor is exactly 1
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        # kept when a BatchNorm2d is converted
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x):
        """Normalizes an (N, C, H, W) tensor."""
        if not x.requires_grad:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        # F.batch_norm would store tensors for the gradients of weight and bias.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale = scale.reshape(1, -1, 1, 1).to(x.dtype)
        shift = shift.reshape(1, -1, 1, 1).to(x.dtype)
        return x * scale + shift

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if (local_metadata.get("version") or 0) < 2:
            # Old and converted checkpoints may have merged the statistics into weight and bias.
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module):
        """Replaces every BatchNorm2d and SyncBatchNorm in a module by a frozen one.

        Returns:
            The module itself, changed in place; the new layer if the module is a normalization.
        """

        def frozen_from(norm):
            frozen = cls(norm.num_features)
            if norm.affine:
                frozen.weight.data = norm.weight.data.clone().detach()
                frozen.bias.data = norm.bias.data.clone().detach()
            frozen.running_mean.data = norm.running_mean.data
            frozen.running_var.data = norm.running_var.data
            frozen.eps = norm.eps
            frozen.num_batches_tracked = norm.num_batches_tracked
            return frozen

        return _replace(module, (nn.BatchNorm2d, nn.SyncBatchNorm), frozen_from)

    @classmethod
    def convert_frozenbatchnorm2d_to_batchnorm2d(cls, module: nn.Module) -> nn.Module:
        """Replaces every frozen normalization in a module by a trainable BatchNorm2d."""

        def thawed_from(frozen):
            norm = nn.BatchNorm2d(frozen.num_features, frozen.eps)
            norm.weight.data = frozen.weight.data.clone().detach()
            norm.bias.data = frozen.bias.data.clone().detach()
            norm.running_mean.data = frozen.running_mean.data.clone().detach()
            norm.running_var.data = frozen.running_var.data.clone().detach()
            return norm

        return _replace(module, (FrozenBatchNorm2d,), thawed_from)


def _replace(module: nn.Module, types: tuple[type, ...], make: Callable) -> nn.Module:
    """Replaces submodules of the given types, at any depth, by the result of ``make``."""
    if isinstance(module, types):
        return make(module)
    for name, child in module.named_children():
        replacement = _replace(child, types, make)
        if replacement is not child:
            module.add_module(name, replacement)
    return module


class LayerNorm(nn.Module):
    """Layer normalization over the channels of an (N, C, H, W) tensor.

    Args:
        normalized_shape: Number of channels.
        eps: Value added to the variance.
    """

    def __init__(self, normalized_shape, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.normalized_shape = (normalized_shape,)

    def forward(self, x):
        """Normalizes each cell."""
        mean = x.mean(1, keepdim=True)
        var = (x - mean).square().mean(1, keepdim=True)
        normalized = (x - mean) / torch.sqrt(var + self.eps)
        return self.weight[:, None, None] * normalized + self.bias[:, None, None]


def get_norm(norm: str | Callable | None, out_channels: int) -> nn.Module | None:
    """Returns the normalization layer that a config names.

    Args:
        norm: "BN", "SyncBN", "nnSyncBN", "FrozenBN", "GN" (32 groups) or "LN"; a callable that
            takes the number of channels; None or "" for no layer.
        out_channels: Number of channels of the input of the layer.
    """
    if norm is None or norm == "":
        return None
    make = _NORMS[norm] if isinstance(norm, str) else norm
    return make(out_channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": LayerNorm,
}
