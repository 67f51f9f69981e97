# SPDX-License-Identifier: Apache-2.0
"""Test-time augmentation is not covered: every name of this module says so."""

from detectron2._lite import absent

__getattr__ = absent(__name__, "DatasetMapperTTA", "GeneralizedRCNNWithTTA")
