# SPDX-License-Identifier: Apache-2.0
"""Counts of operations, activations and parameters, by fvcore."""

import logging
from collections import defaultdict
from typing import Any

import fvcore.nn
import torch
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.nn import parameter_count, parameter_count_table
from torch import nn

__all__ = [
    "activation_count_operators",
    "flop_count_operators",
    "parameter_count_table",
    "parameter_count",
    "FlopCountAnalysis",
]

# Elementwise and bookkeeping operators, negligible beside convolutions and matrix products.
_IGNORED_OPS = {
    f"aten::{name}"
    for name in (
        "add add_ argmax argsort constant_pad_nd div div_ exp log2 max_pool2d meshgrid mul "
        "mul_ neg nonzero_numpy reciprocal remainder repeat_interleave rsub sigmoid sigmoid_ "
        "softmax sort sqrt sub _unique2"
    ).split()
} | {"torchvision::nms"}


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors in nested containers, instances and boxes, in a fixed order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Boxes | ImageList):
        return [value.tensor]
    if isinstance(value, Instances):
        value = value.get_fields()
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


class _Traceable(nn.Module):
    """A detection model as tensors -> tensors, the form that tracing wants."""

    def __init__(self, model: nn.Module, batched_inputs: list[dict]):
        super().__init__()
        self.model = model
        self._others = [{k: v for k, v in item.items() if k != "image"} for item in batched_inputs]

    def forward(self, *images):
        inputs = [
            {"image": image, **other} for image, other in zip(images, self._others, strict=True)
        ]
        if isinstance(getattr(self.model, "module", self.model), nn.Module) and hasattr(
            getattr(self.model, "module", self.model), "inference"
        ):
            if not self.model.training:
                return tuple(_tensors(self.model.inference(inputs, do_postprocess=False)))
        return tuple(_tensors(self.model(inputs)))


class FlopCountAnalysis(fvcore.nn.FlopCountAnalysis):
    """fvcore's counter for models whose input is Detectron2's list of dicts.

    Args:
        model: a module. One with the method `inference` is counted in eval mode without the final
            resizing of its results.
        inputs: `list[dict]` with an "image" each, or what fvcore accepts for other modules.
    """

    def __init__(self, model: nn.Module, inputs):
        if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict):
            images = tuple(item["image"].to(torch.float32) for item in inputs)
            model, inputs = _Traceable(model, inputs), images
        super().__init__(model, inputs)
        self.set_op_handle(**dict.fromkeys(_IGNORED_OPS))


def _count(counter: type, model: nn.Module, inputs: list, **kwargs) -> defaultdict:
    training = model.training
    model.eval()
    try:
        images = tuple(item["image"].to(torch.float32) for item in inputs)
        counts, _ = counter(_Traceable(model, inputs), images, **kwargs)
    finally:
        model.train(training)
    return counts


def flop_count_operators(model: nn.Module, inputs: list) -> defaultdict:
    """Giga-operations by operator in one evaluation of `model(inputs)`, counted by tracing.

    Args:
        model: a detection model; it runs in eval mode.
        inputs: `list[dict]` in Detectron2's format.
    """
    ignored = dict.fromkeys(_IGNORED_OPS, _no_flops)
    logging.getLogger("fvcore.nn.jit_handles").setLevel(logging.ERROR)
    return _count(fvcore.nn.flop_count, model, inputs, supported_ops=ignored)


def activation_count_operators(model: nn.Module, inputs: list, **kwargs) -> defaultdict:
    """Mega-activations by operator in one evaluation; arguments as `flop_count_operators`."""
    return _count(fvcore.nn.activation_count, model, inputs, **kwargs)


def _no_flops(inputs, outputs) -> dict:
    return {}


def find_unused_parameters(model: nn.Module, inputs: Any) -> list[str]:
    """Names of the parameters that get no gradient from the losses.

    Args:
        model: a module in training mode that returns a dict of losses.
        inputs: its argument, or a tuple of its arguments.
    """
    assert model.training
    for parameter in model.parameters():
        parameter.grad = None
    losses = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    sum(losses.values() if isinstance(losses, dict) else [losses]).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    for parameter in model.parameters():
        parameter.grad = None
    return unused
