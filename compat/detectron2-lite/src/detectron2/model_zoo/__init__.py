# SPDX-License-Identifier: Apache-2.0
"""Placeholder of Detectron2's model zoo: it can be imported, and each of its functions raises."""

from detectron2._lite import absent

__getattr__ = absent(__name__)
