# SPDX-License-Identifier: Apache-2.0
"""Point sampling of PointRend (Kirillov et al., CVPR 2020). Its heads are absent."""

from detectron2._lite import absent

__getattr__ = absent(
    __name__,
    "ColorAugSSDTransform",
    "ImplicitPointRendMaskHead",
    "PointRendMaskHead",
    "PointRendSemSegHead",
    "add_pointrend_config",
)
