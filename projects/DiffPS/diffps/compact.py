# SPDX-License-Identifier: Apache-2.0
"""Queries, keys and values from what they are linear maps of, for a smaller feature cache.

Shape shorthand: C channels of a transformer block, D of a projection, (h, w) cells.

The queries, keys and values of a self-attention are frozen projections of one normed hidden state.
A cache that keeps that state and projects at reading holds 53 MB instead of 86 MB per image of
1280 x 1280 (float16), since four of the seven default activations come from two blocks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffps.hooks import Layer

_SOURCE_KINDS = {"q": "n", "k": "n", "v": "n", "xq": "xn"}


class HiddenStateProjector:
    """Turns normed hidden states into the activations wanted.

    Attributes:
        source_layers: what to take out of the UNet, and to keep, instead of ``layers``.
    """

    def __init__(
        self, unet: nn.Module, layers: Sequence[Layer], available: dict[str, Layer]
    ) -> None:
        """
        Args:
            layers: the activations wanted; kinds that are no projection stay as they are.
            available: all layers of the UNet (:func:`diffps.hooks.list_layers`).
        """
        self.unet = unet
        self._sources = [(layer, _source(layer, available)) for layer in layers]
        self.source_layers = list(dict.fromkeys(source for _, source in self._sources))

    @torch.no_grad()
    def __call__(self, states: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Applies the frozen projections.

        Args:
            states: name of each of ``source_layers`` -> (C, h, w) of one image.
            device: of the UNet.

        Returns:
            Name of each of ``layers`` -> (D, h, w), in the type of the projection's weights. What
            exceeds float16 comes in float32.
        """
        states = {name: x.to(device) for name, x in states.items()}
        return {
            layer.name: states[source.name]
            if source is layer
            else _project(self.unet.get_submodule(layer.module), states[source.name])
            for layer, source in self._sources
        }


def _source(layer: Layer, available: dict[str, Layer]) -> Layer:
    if layer.kind not in _SOURCE_KINDS:
        return layer
    place = layer.name.rpartition("_")[0]
    return available[f"{place}_{_SOURCE_KINDS[layer.kind]}"]


def _project(linear: nn.Linear, state: Tensor) -> Tensor:
    """(C, h, w) -> (D, h, w); a matrix product, which leaves the cells where they are."""
    out = _product(linear, state, linear.weight.dtype)
    if out.dtype == torch.float16 and not out.isfinite().all():
        out = _product(linear, state, torch.float32)
    return out.unflatten(1, state.shape[1:])


def _product(linear: nn.Linear, state: Tensor, dtype: torch.dtype) -> Tensor:
    out = linear.weight.to(dtype) @ state.flatten(1).to(dtype)
    return out if linear.bias is None else out + linear.bias.to(dtype)[:, None]
