# SPDX-License-Identifier: Apache-2.0
"""Registry of re-ID networks that embed given boxes of images."""

from fvcore.common.registry import Registry

CROP_EMBEDDER_REGISTRY = Registry("CROP_EMBEDDER")
CROP_EMBEDDER_REGISTRY.__doc__ = """
Re-ID networks of all projects, usable as the second stage of TwoStage.

An entry is called with ``(cfg, weights)``, where ``weights`` is a path or "", and returns a module
with the attributes ``net`` (the network without projection) and ``embed_dim`` (D). It is called
with a list of images (3, H, W), pixel values 0 .. 255 in the order of ``cfg.INPUT.FORMAT``, and a
list of boxes (n, 4) XYXY in pixels; it returns unit vectors (sum of n, D).
"""
