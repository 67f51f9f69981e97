# SPDX-License-Identifier: Apache-2.0
"""Normalization layers: frozen, synchronized, cycling, and the names configs give them."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import nn
from torch.nn import functional as F


class FrozenBatchNorm2d(nn.Module):
    """Batch normalization whose statistics and affine parameters are fixed buffers.

    It computes x * weight / sqrt(running_var + eps) + bias - (the same of running_mean), with the
    values that a checkpoint brings; a fresh one changes nothing.
    """

    # 2: checkpoints hold running_mean and running_var. 3: as Detectron2 writes them today.
    _version = 3

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        neutral = {
            "weight": torch.ones(num_features),
            "bias": torch.zeros(num_features),
            "running_mean": torch.zeros(num_features),
            # with eps added to it, the divisor is exactly 1
            "running_var": torch.ones(num_features) - eps,
            # there only so that it is kept when a BatchNorm2d is converted
            "num_batches_tracked": None,
        }
        for name, values in neutral.items():
            self.register_buffer(name, values)

    def forward(self, x):
        if not x.requires_grad:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps)
        # F.batch_norm would keep what it needs for gradients of weight and bias; this does not.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale = scale.reshape(1, -1, 1, 1).to(x.dtype)
        shift = shift.reshape(1, -1, 1, 1).to(x.dtype)
        return x * scale + shift

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        if (local_metadata.get("version") or 0) < 2:
            # Old and converted checkpoints may have had their statistics merged into weight, bias.
            for name, neutral in (
                ("running_mean", torch.zeros_like(self.running_mean)),
                ("running_var", torch.ones_like(self.running_var)),
            ):
                state_dict.setdefault(prefix + name, neutral)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module):
        """Replaces every BatchNorm and SyncBatchNorm in a module by a frozen one.

        Returns:
            The module itself, changed in place; or, if it is a normalization, the new one.
        """
        normalizations = (
            nn.modules.batchnorm.BatchNorm2d,
            nn.modules.batchnorm.SyncBatchNorm,
        )
        return _replace(module, normalizations, cls._frozen_from)

    @classmethod
    def _frozen_from(cls, norm):
        frozen = cls(norm.num_features)
        if norm.affine:
            frozen.weight.data = norm.weight.data.clone().detach()
            frozen.bias.data = norm.bias.data.clone().detach()
        frozen.running_mean.data = norm.running_mean.data
        frozen.running_var.data = norm.running_var.data
        frozen.eps = norm.eps
        frozen.num_batches_tracked = norm.num_batches_tracked
        return frozen

    @classmethod
    def convert_frozenbatchnorm2d_to_batchnorm2d(cls, module: nn.Module) -> nn.Module:
        """Replaces every frozen normalization in a module by a learning BatchNorm2d."""
        return _replace(module, (FrozenBatchNorm2d,), cls._thawed_from)

    @staticmethod
    def _thawed_from(frozen):
        norm = nn.BatchNorm2d(frozen.num_features, frozen.eps)
        norm.weight.data = frozen.weight.data.clone().detach()
        norm.bias.data = frozen.bias.data.clone().detach()
        norm.running_mean.data = frozen.running_mean.data.clone().detach()
        norm.running_var.data = frozen.running_var.data.clone().detach()
        return norm


def _replace(module: nn.Module, types: tuple[type, ...], make: Callable) -> nn.Module:
    """Replaces submodules of the given types, at any depth, by ``make`` of them."""
    if isinstance(module, types):
        return make(module)
    for name, child in module.named_children():
        replacement = _replace(child, types, make)
        if replacement is not child:
            module.add_module(name, replacement)
    return module


def get_norm(norm: str | Callable | None, out_channels: int) -> nn.Module | None:
    """Makes the normalization layer that a config names.

    Args:
        norm: "BN", "SyncBN", "FrozenBN", "GN" (32 groups), "LN", "nnSyncBN", "naiveSyncBN",
            "naiveSyncBN_N"; a callable that takes the channels; or None or "" for no layer.
        out_channels: channels of the input of the layer.
    """
    if norm is None or norm == "":
        return None
    make = _NORMS[norm] if isinstance(norm, str) else norm
    return make(out_channels)


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalization over the batches of all processes, by all-reduce of the statistics.

    Slower than ``torch.nn.SyncBatchNorm``, but it also takes empty batches and runs on CPU.
    """

    def __init__(self, *args, stats_mode="", **kwargs):
        """
        Args:
            *args: see ``torch.nn.BatchNorm2d``.
            stats_mode: "" weighs every process alike; "N" weighs it by its batch size, and an
                empty batch does no harm.
            **kwargs: see ``torch.nn.BatchNorm2d``.
        """
        super().__init__(*args, **kwargs)
        if stats_mode not in ("", "N"):
            raise AssertionError(f'stats_mode must be "" or "N", got {stats_mode!r}')
        self._stats_mode = stats_mode

    def forward(self, input):
        if comm.get_world_size() == 1 or not self.training:
            return super().forward(input)

        batch, channels = input.shape[0], input.shape[1]
        # Squares and sums of them overflow half precision.
        is_half = input.dtype == torch.float16
        input = input.float() if is_half else input
        # An empty batch has no mean; any value will do, for its weight is 0 in mode "N".
        if batch == 0 and self._stats_mode == "":
            raise AssertionError('an empty batch needs stats_mode "N" (naiveSyncBN_N)')
        mean = input.mean(dim=[0, 2, 3]) if batch else input.sum(dim=[0, 2, 3])
        square = (input * input).mean(dim=[0, 2, 3]) if batch else input.sum(dim=[0, 2, 3])

        if self._stats_mode == "":
            world_size = dist.get_world_size()
            mean, square = (
                differentiable_all_reduce(torch.cat([mean, square])) / world_size
            ).split(channels)
            momentum = self.momentum
        else:
            weight = mean.new_full((1,), batch)
            reduced = differentiable_all_reduce(torch.cat([mean * batch, square * batch, weight]))
            total = reduced[-1].detach()
            # no process has an image: keep the running statistics
            momentum = total.clamp(max=1) * self.momentum
            mean, square, _ = (reduced / total.clamp(min=1)).split([channels, channels, 1])

        var = square - mean * mean
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        self.running_mean += momentum * (mean.detach() - self.running_mean)
        self.running_var += momentum * (var.detach() - self.running_var)
        output = input * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)
        return output.half() if is_half else output


def _affine_parameters(channels: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Makes (channels,) scale and shift that change nothing yet."""
    return nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))


class CycleBatchNormList(nn.ModuleList):
    """Several batch normalizations of which each call uses the next, with one affine transform.

    For a layer that is applied to several domains in turn, for example the feature maps of a
    pyramid: each keeps its own statistics.
    """

    def __init__(self, length: int, bn_class=nn.BatchNorm2d, **kwargs):
        """
        Args:
            length: number of calls in a cycle.
            bn_class: class of the normalizations.
            **kwargs: its arguments; ``num_features`` is one of them.
        """
        self._affine = kwargs.pop("affine", True)
        super().__init__([bn_class(**kwargs, affine=False) for _ in range(length)])
        if self._affine:
            self.weight, self.bias = _affine_parameters(self[0].num_features)
        self._pos = 0

    def forward(self, x):
        normalized = self[self._pos](x)
        self._pos = (self._pos + 1) % len(self)
        if not self._affine:
            return normalized
        return normalized * self.weight.reshape(1, -1, 1, 1) + self.bias.reshape(1, -1, 1, 1)

    def extra_repr(self) -> str:
        return f"affine={self._affine}"


class LayerNorm(nn.Module):
    """Layer normalization over the channels of each cell of an (N, C, H, W) tensor."""

    def __init__(self, normalized_shape, eps=1e-6):
        super().__init__()
        self.weight, self.bias = _affine_parameters(normalized_shape)
        self.eps = eps
        self.normalized_shape = (normalized_shape,)

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        var = (x - mean).square().mean(1, keepdim=True)
        normalized = (x - mean) / torch.sqrt(var + self.eps)
        return self.weight[:, None, None] * normalized + self.bias[:, None, None]


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
    "LN": LayerNorm,
}
