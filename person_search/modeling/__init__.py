# SPDX-License-Identifier: Apache-2.0
"""Model parts that several methods share. Importing this package registers the backbones."""

from person_search.modeling.oim import OIMLoss
from person_search.modeling.slim_resnet import (
    build_slim_resnet_backbone,
    build_slim_resnet_fpn_backbone,
)

__all__ = ["OIMLoss", "build_slim_resnet_backbone", "build_slim_resnet_fpn_backbone"]
