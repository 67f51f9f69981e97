# SPDX-License-Identifier: Apache-2.0
"""Optimizes a trained model for inference: folded norms, channels-last layout, low precision.

The backbone dominates the cost of both methods' detectors, and its convolutions tolerate low
precision. Everything behind it (box codecs, dynamic kernels, NMS, the final normalization) keeps
float32: the optimized backbone takes and returns float32 tensors. On a CPU, wide 3x3 convolutions
of a float32 backbone are Winograd's (:mod:`person_search.modeling.winograd`), RoIAlign reads the
channels-last maps directly (:mod:`person_search.modeling.pooling`), and freed memory is kept
(:func:`keep_freed_memory`).
"""

import copy
import ctypes
import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import Backbone
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_map_only

from person_search.modeling.pooling import ChannelsLastPooler, is_replaceable
from person_search.modeling.timm_fpn import TimmBackbone
from person_search.modeling.winograd import use_winograd

PRECISIONS = ("eager", "auto", "float32", "bfloat16", "float16")


def choose_precision(
    precision: str, device: str | torch.device, model: nn.Module | None = None
) -> torch.dtype:
    """Returns the dtype of a precision setting on a device.

    Args:
        precision: One of :data:`PRECISIONS`. "auto" selects bfloat16 where the device computes it
            faster than float32 (AVX512-BF16 or AMX on CPUs, compute capability 8.0 or later on
            NVIDIA GPUs), float16 on older GPUs with tensor cores, and float32 elsewhere. "eager"
            is float32 without any optimization.
        device: Device of the model.
        model: The model; "auto" selects float32 if its attribute ``auto_low_precision`` is False.

    Raises:
        ValueError: The precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"TEST.PRECISION (--precision) is {precision!r}; choose from {', '.join(PRECISIONS)}."
        )
    exact = precision == "auto" and not getattr(model, "auto_low_precision", True)
    if precision in ("eager", "float32") or exact:
        return torch.float32
    supported = supported_precisions(device)
    if precision == "auto":
        return getattr(torch, supported[0])
    if precision not in supported:
        log_first_n(
            logging.WARNING,
            f"{device} has no fast {precision}; float32 is used instead. Fast here: "
            f"{', '.join(supported)}.",
            name=__name__,
            key="message",
        )
        return torch.float32
    return getattr(torch, precision)


def supported_precisions(device: str | torch.device) -> tuple[str, ...]:
    """Returns the precisions that a device computes at full speed, the fastest first."""
    device = torch.device(device)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        bfloat16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
        return ("bfloat16", "float32") if bfloat16 else ("float32",)
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        if major >= 8:
            return "bfloat16", "float16", "float32"
        return ("float16", "float32") if major == 7 else ("float32",)
    return ("float32",)


def fold_batch_norms(module: nn.Module) -> int:
    """Folds batch norms into the convolutions before them, in place.

    Args:
        module: Module in eval mode. Frozen batch norms and ordinary ones in eval mode are folded,
            in Detectron2's ``Conv2d``, behind a convolution in ``nn.Sequential``, and in the models
            of timm.

    Returns:
        Number of folded norms.
    """
    folded = 0
    for layer in list(module.modules()):
        if isinstance(layer, TimmBackbone):
            folded += layer.fold_norms(_fold_batch_norm)
        if isinstance(layer, Conv2d) and _fold_batch_norm(layer, layer.norm):
            layer.norm = None
            folded += 1
        if isinstance(layer, nn.Sequential):
            for index, part in enumerate(list(layer)[:-1]):
                plain = isinstance(part, nn.Conv2d) and getattr(part, "norm", None) is None
                plain = plain and getattr(part, "activation", None) is None
                if plain and _fold_batch_norm(part, layer[index + 1]):
                    layer[index + 1] = nn.Identity()
                    folded += 1
    return folded


def _fold_batch_norm(conv: nn.Conv2d, norm: Any) -> bool:
    """Folds what follows a convolution into it if it is a constant batch norm."""
    batch_norm = isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) and not norm.training
    if norm is None or not (batch_norm or isinstance(norm, FrozenBatchNorm2d)):
        return False
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
        norm.weight, norm.bias,
    )  # fmt: skip
    return True


def to_contiguous(x: Tensor) -> Tensor:
    """Returns ``x.contiguous()``, four times as fast for channels-last maps on a CPU.

    RoIAlign would copy maps of another layout in every call. PyTorch has a blocked transposition
    for two dimensions, but copies four dimensions element by element.

    Args:
        x: Tensor of any shape; maps are (B, C, H, W).
    """
    if x.is_contiguous() or x.dim() != 4 or x.device.type != "cpu":
        return x.contiguous()
    result = torch.empty(x.shape, dtype=x.dtype)
    for target, image in zip(result.flatten(2), x, strict=True):
        target.copy_(image.permute(1, 2, 0).flatten(0, 1).t())
    return result


def optimize_for_inference(
    model: nn.Module, precision: str = "auto", modules: Sequence[str] | None = None
) -> nn.Module:
    """Returns a model with the same interface that is faster in inference.

    The parts to optimize are copied, all others are shared, so that a model in training can be
    evaluated this way: the copy holds its own backbone, and nothing of the original changes.

    Args:
        model: Person search model in eval mode.
        precision: See :func:`choose_precision`; "eager" returns the model itself.
        modules: Dotted names of the parts that may run in low precision. Default: the attribute
            ``low_precision_modules`` of the model, or its backbones. The parts that the attribute
            ``float32_modules`` names are optimized in float32.

    Returns:
        The optimized model. It cannot be trained.
    """
    if modules is None:
        modules = getattr(model, "low_precision_modules", _find_backbones(model))
    device = device_of(model)
    dtype = choose_precision(precision, device, model)
    if precision == "eager":
        return model
    optimized = _shallow_copy(model)
    poolers: list[str] = []
    if device.type == "cpu":
        poolers = [name for name, module in model.named_modules() if is_replaceable(module)]
    for name in poolers:
        _replace(optimized, name, ChannelsLastPooler)
    for name in modules:
        _replace(optimized, name, lambda part: _optimize_part(part, dtype, bool(poolers)))
    for name in getattr(model, "float32_modules", ()):
        _replace(optimized, name, lambda part: _optimize_part(part, torch.float32, bool(poolers)))
    if device.type == "cpu":
        keep_freed_memory()  # not before: what the conversion frees goes back to the kernel
    return optimized.eval()


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of the parameters of a model; the CPU if there are none."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _find_backbones(model: nn.Module) -> list[str]:
    """Returns the names of the backbones that are not parts of another backbone."""
    names: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in names)
        if name and isinstance(module, Backbone) and not inside:
            names.append(name)
    return names


@functools.cache
def keep_freed_memory() -> None:
    """Makes the C library reuse freed memory instead of returning it to the kernel.

    By default, glibc maps and unmaps the memory of each large tensor, and every first access to a
    page is a fault of the kernel. Those faults take a third of the time of PSDiff's head.
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None
    set_option = getattr(library, "mallopt", None)  # absent outside of glibc
    if set_option is not None:
        m_mmap_max, m_trim_threshold = -4, -1
        set_option(m_mmap_max, 0)
        set_option(m_trim_threshold, -1)


def _replace(model: nn.Module, name: str, make: Callable[[nn.Module], nn.Module]) -> None:
    """Replaces a submodule of a copied model; the modules around it are copied as well."""
    parent = model
    *path, last = name.split(".")
    for step in path:
        parent._modules[step] = _shallow_copy(parent._modules[step])
        parent = parent._modules[step]
    parent._modules[last] = make(parent._modules[last])


def _shallow_copy(module: nn.Module) -> nn.Module:
    """Copies a module without its submodules and tensors, which stay shared."""
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    return clone


def _optimize_part(part: nn.Module, dtype: torch.dtype, channels_last: bool) -> nn.Module:
    """Copies and converts a part; tensors are converted on the way in and out."""
    low = (
        dtype != torch.float32 or device_of(part).type == "cpu"
    )  # cuDNN's float32 is channels-first
    layout = torch.channels_last if low else torch.preserve_format

    def to_part(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        # the first convolution converts an image itself, and does not keep a copy until the end
        is_map = x.dim() == 4 and x.shape[1] > 3
        return x.to(dtype, memory_format=layout if is_map else torch.preserve_format)

    def to_model(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return x.float() if channels_last else to_contiguous(x.float())

    part = copy.deepcopy(part).eval().requires_grad_(False)
    fold_batch_norms(part)
    if dtype == torch.float32 and isinstance(part, Backbone):  # its weights take more memory
        use_winograd(part)
    part.to(dtype=dtype, memory_format=layout)
    part.register_forward_pre_hook(
        lambda module, args, kwargs: tree_map_only(Tensor, to_part, (args, kwargs)),
        with_kwargs=True,
    )
    part.register_forward_hook(lambda module, args, out: tree_map_only(Tensor, to_model, out))
    return part
