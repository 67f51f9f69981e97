# SPDX-License-Identifier: Apache-2.0
"""The shape of a feature map."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Static shape of a feature map; unknown values are None.

    Attributes:
        channels: Number of channels.
        height: Height in cells.
        width: Width in cells.
        stride: Input pixels per cell.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
