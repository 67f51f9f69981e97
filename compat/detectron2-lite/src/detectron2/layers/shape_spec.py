# SPDX-License-Identifier: Apache-2.0
"""The shape of a feature map as far as modules need to know it to be built."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Static facts about a feature map; None where unknown or of no matter."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
    """Input pixels per cell."""
