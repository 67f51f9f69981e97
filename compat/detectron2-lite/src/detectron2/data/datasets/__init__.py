# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""Loaders of data sets in common formats."""

from detectron2._lite import absent

from .coco import load_coco_json, register_coco_instances

__getattr__ = absent(__name__)
