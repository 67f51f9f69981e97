# ruff: noqa: F401
# SPDX-License-Identifier: Apache-2.0
"""Meta architectures: whole models, from a batch of image dicts to losses or results."""

from detectron2._lite import absent

from .build import META_ARCH_REGISTRY, build_model
from .rcnn import GeneralizedRCNN

__getattr__ = absent(__name__)
