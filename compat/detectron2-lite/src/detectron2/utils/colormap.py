# SPDX-License-Identifier: Apache-2.0
"""The palette of the visualizer: 74 colors, the first ones easy to tell apart."""

import itertools
import random

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

_THIRDS = (0.0, 0.333, 0.667, 1.0)
_SIXTHS = (0.167, 0.333, 0.5, 0.667, 0.833, 1.0)


def _build_palette() -> np.ndarray:
    """The palette as (74, 3) float32 RGB in [0, 1]."""
    colors = [
        (0.000, 0.447, 0.741),
        (0.850, 0.325, 0.098),
        (0.929, 0.694, 0.125),
        (0.494, 0.184, 0.556),
        (0.466, 0.674, 0.188),
        (0.301, 0.745, 0.933),
        (0.635, 0.078, 0.184),
        (0.300, 0.300, 0.300),
        (0.600, 0.600, 0.600),
        (1.000, 0.000, 0.000),
        (1.000, 0.500, 0.000),
        (0.749, 0.749, 0.000),
        (0.000, 1.000, 0.000),
        (0.000, 0.000, 1.000),
        (0.667, 0.000, 1.000),
    ]
    # A grid over red and green at three levels of blue. Black, white, and at blue = 0 the pure
    # reds and greens, come below.
    colors += [(r, g, 0.0) for r, g in itertools.product(_THIRDS[1:], repeat=2)]
    colors += [(r, g, 0.5) for r, g in itertools.product(_THIRDS, repeat=2) if r or g]
    colors += [(r, g, 1.0) for r, g in itertools.product(_THIRDS, repeat=2) if 0 < r + g < 2]
    # Ramps of one channel, then grays.
    colors += [(r, 0.0, 0.0) for r in (0.333, *_SIXTHS[2:])]
    colors += [(0.0, g, 0.0) for g in _SIXTHS]
    colors += [(0.0, 0.0, b) for b in _SIXTHS]
    colors += [(level,) * 3 for level in (0.0, 0.143, 0.857, 1.0)]
    return np.array(colors, dtype=np.float32)


_COLORS = _build_palette()


def _check_maximum(maximum: int) -> None:
    assert maximum in (1, 255), f"maximum={maximum!r}, but colors range up to 1 or 255"


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """The whole palette.

    Args:
        rgb: give RGB order; BGR otherwise.
        maximum: 255 or 1, the value of a full channel.

    Returns:
        (74, 3) float32.
    """
    _check_maximum(maximum)
    colors = _COLORS * maximum
    return colors if rgb else colors[:, ::-1]


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """One color of the palette, drawn by NumPy's global generator; (3,)."""
    color = _COLORS[np.random.randint(len(_COLORS))] * maximum
    return color if rgb else color[::-1]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """`N` different colors of the palette, drawn by Python's global generator."""
    colors = [_COLORS[index] * maximum for index in random.sample(range(len(_COLORS)), N)]
    return colors if rgb else [color[::-1] for color in colors]
