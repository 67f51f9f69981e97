# SPDX-License-Identifier: Apache-2.0
"""Floating point operations of a module, counted from its trace by fvcore with additional rules.

fvcore ignores operators without a rule, in eval mode also fused attention. Here

- a multiply-add of a convolution or matrix product is two operations (fvcore: one);
- fused attention (``scaled_dot_product_attention`` and the fast path of
  ``nn.MultiheadAttention``) counts like the matrix products that it computes;
- RoIAlign counts the four weighted corners of each of its samples, two operations each;
- norms and upsampling count as in fvcore (2 to 5 per element);
- everything else is elementwise, copies or sorts; it is not counted, but reported by name.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import einsum_flop_jit, get_shape
from torch import nn

Rule = Callable[[list[Any], list[Any]], float]

_SUSPICIOUS = re.compile(
    r"attention|mm$|mul_?mat|conv|linear|lstm|gru|encoder_layer|fft|roi|deform"
)


@dataclass(frozen=True)
class FlopCount:
    """Operations of one call.

    Attributes:
        by_operator: Operator -> operations.
        by_module: Dotted name of a submodule -> operations in it and below; "" is the whole.
        uncounted: Operator without a rule -> number of its calls.
    """

    by_operator: dict[str, float]
    by_module: dict[str, float]
    uncounted: dict[str, int]

    @property
    def total(self) -> float:
        """All counted operations."""
        return sum(self.by_operator.values())

    @property
    def suspicious(self) -> list[str]:
        """Uncounted operators whose names suggest that they are not elementwise."""
        return [name for name in self.uncounted if _SUSPICIOUS.search(name)]


def count_flops(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> FlopCount:
    """Counts the operations of ``module(*inputs)``, which is run once, without gradients.

    Args:
        module: Module that takes tensors and returns a tensor or a tuple of tensors. Its training
            mode is not changed.
        inputs: Inputs of the size to count for.
    """
    adaptive: list[str] = []

    def roi_align(inputs: list[Any], outputs: list[Any]) -> float:
        samples = inputs[5].toIValue()
        if samples <= 0:  # adaptive: the number depends on the size of the box
            adaptive.append("torchvision::roi_align")
        return _roi_align_flops(get_shape(outputs[0]), max(samples, 0))

    analysis = FlopCountAnalysis(module, inputs)
    analysis.set_op_handle(**RULES, **{"torchvision::roi_align": roi_align})
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    with torch.no_grad():
        by_operator = {name: float(v) for name, v in analysis.by_operator().items()}
    uncounted = {name: int(n) for name, n in analysis.unsupported_ops().items()}
    if adaptive:
        uncounted[adaptive[0]] = len(adaptive)
    by_module = {name: float(v) for name, v in analysis.by_module().items()}
    return FlopCount(by_operator, by_module, uncounted)


def group_flops(count: FlopCount, groups: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """Returns the operations of named groups of submodules, and of the others as "rest"."""
    sums = {name: sum(count.by_module.get(m, 0.0) for m in mods) for name, mods in groups.items()}
    return sums | {"rest": count.total - sum(sums.values())}


# ---- rules -------------------------------------------------------------------------------------
def _product(operand: int) -> Rule:
    """Returns the rule of a matrix product, which sums over the last axis of an operand."""

    def rule(inputs: list[Any], outputs: list[Any]) -> float:
        return 2.0 * prod(get_shape(outputs[0])) * get_shape(inputs[operand])[-1]

    return rule


def _convolution(inputs: list[Any], outputs: list[Any]) -> float:
    image, weight = get_shape(inputs[0]), get_shape(inputs[1])
    transposed = inputs[6].toIValue()
    places = prod(image) if transposed else prod(get_shape(outputs[0]))
    return 2.0 * places * prod(weight[1:])


def _einsum(inputs: list[Any], outputs: list[Any]) -> float:
    return 2.0 * einsum_flop_jit(inputs, outputs)


def _attention(inputs: list[Any], outputs: list[Any]) -> float:
    """Counts the scores of all queries and keys, and the weighted sum of the values."""
    query, key, value = (get_shape(x) for x in inputs[:3])
    return 2.0 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _multi_head_attention(inputs: list[Any], outputs: list[Any]) -> float:
    """Counts ``nn.MultiheadAttention``'s fast path: four projections, scores, weighted sum."""
    (batch, queries, dim), keys = get_shape(inputs[0]), get_shape(inputs[1])[1]
    projections = (2 * queries + 2 * keys) * dim * dim
    return 2.0 * batch * (projections + 2 * queries * keys * dim)


def _roi_align_flops(output_shape: list[int], samples: int) -> float:
    """Counts (boxes, C, h, w) values, each from samples^2 points of four weighted corners."""
    return 2.0 * prod(output_shape) * samples**2 * 4


RULES: dict[str, Rule] = {
    "aten::_convolution": _convolution,
    "aten::linear": _product(0),
    "aten::mm": _product(0),
    "aten::bmm": _product(0),
    "aten::matmul": _product(0),
    "aten::addmm": _product(1),
    "aten::baddbmm": _product(1),
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
    "aten::_native_multi_head_attention": _multi_head_attention,
}
