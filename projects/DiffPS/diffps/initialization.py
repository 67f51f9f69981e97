# SPDX-License-Identifier: Apache-2.0
"""How box predictor and embedder start (MODEL.DIFFPS.HEAD.INIT)."""

from fvcore.nn import weight_init
from torch import nn

from diffps.norm import RowNorm

_SCHEMES = ("v1", "v2", "v2_keep_norm")


def initialize(scheme: str, *modules: nn.Module) -> None:
    """Initializes modules in place.

    ``v1``: Xavier for linear layers, Kaiming for convolutions; norms as they are. ``v2``, which the
    release uses on PRW: every weight normal with standard deviation 0.01, every bias zero, and this
    includes the weights of the norms. ``v2_keep_norm``: the same without the norms.
    """
    if scheme not in _SCHEMES:
        raise ValueError(f"MODEL.DIFFPS.HEAD.INIT is '{scheme}'; it must be one of {_SCHEMES}.")
    for module in modules:
        for layer in module.modules():
            if scheme == "v1":
                _fill(layer)
            elif scheme == "v2" or not isinstance(layer, RowNorm):
                _draw(layer)


def _fill(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        weight_init.c2_xavier_fill(layer)
    elif isinstance(layer, nn.Conv2d):
        weight_init.c2_msra_fill(layer)


def _draw(layer: nn.Module) -> None:
    for name, parameter in layer.named_parameters(recurse=False):
        if name == "bias":
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=0.01)
