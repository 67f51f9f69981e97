# SPDX-License-Identifier: Apache-2.0
"""Placeholders of the heads for rotated boxes, which are absent."""

from detectron2._lite import absent_class

RROIHeads = absent_class(__name__, "RROIHeads")
RotatedFastRCNNOutputLayers = absent_class(__name__, "RotatedFastRCNNOutputLayers")
