# SPDX-License-Identifier: Apache-2.0
"""Rotated boxes are absent; the names exist so that code which only imports them loads."""

from detectron2._lite import absent_class

RROIHeads = absent_class(__name__, "RROIHeads")
RotatedFastRCNNOutputLayers = absent_class(__name__, "RotatedFastRCNNOutputLayers")
