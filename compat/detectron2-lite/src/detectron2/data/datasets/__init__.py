# SPDX-License-Identifier: Apache-2.0
"""Loaders of data sets in common formats, and the data sets registered under known names."""

from detectron2._lite import absent

from . import builtin as _builtin  # noqa: F401  registers
from .coco import convert_to_coco_json, load_coco_json, register_coco_instances
from .pascal_voc import load_voc_instances, register_pascal_voc

__all__ = [
    "convert_to_coco_json",
    "load_coco_json",
    "load_voc_instances",
    "register_coco_instances",
    "register_pascal_voc",
]

__getattr__ = absent(
    __name__,
    "get_lvis_instances_meta",
    "load_lvis_json",
    "load_sem_seg",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
    "register_lvis_instances",
)
