# SPDX-License-Identifier: Apache-2.0
"""The registry of whole models."""

import torch
from fvcore.common.registry import Registry

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = """
Whole models, called as `obj(cfg)`; they return an `nn.Module` that takes a list of dicts, one per
image.
"""


def build_model(cfg):
    """Builds the model named by cfg.MODEL.META_ARCHITECTURE, without loading weights."""
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
