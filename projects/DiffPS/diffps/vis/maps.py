# SPDX-License-Identifier: Apache-2.0
"""Draws maps of cells over the image.

Shape shorthand: (h, w) cells of a map, (H, W) pixels of the model's input without padding. An image
is the input or a part of it at any size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

COLORMAP = "inferno"


def value_range(maps: Sequence[Tensor]) -> tuple[float, float]:
    """Returns the minimum and maximum of several maps; (0, 0) without maps."""
    if not maps:
        return 0.0, 0.0
    return min(float(x.min()) for x in maps), max(float(x.max()) for x in maps)


def unit_range(x: Tensor, limits: tuple[float, float]) -> Tensor:
    """Scales values between the limits to [0, 1]; equal limits give zeros."""
    low, high = limits
    return ((x - low) / (high - low)).clamp(0, 1) if high > low else torch.zeros_like(x)


def valid_cells(x: Tensor, stride: int, input_size: Sequence[int]) -> Tensor:
    """Returns the cells of (..., h, w) that are not only padding."""
    height, width = (-(-side // stride) for side in input_size)
    return x[..., :height, :width]


def place_map(
    x: Tensor,
    stride: int,
    input_size: Sequence[int],
    image_size: Sequence[int],
    smooth: bool = True,
) -> Tensor:
    """Enlarges a map to the size of an image, with every cell at its place in the image.

    Args:
        x: Map with padding, (h, w) or (h, w, k).
        stride: Pixels of the input per cell.
        input_size: (H, W).
        image_size: (width, height) of the image.
        smooth: Whether to interpolate between the centers of cells; otherwise a cell is one block.

    Returns:
        (height, width) or (height, width, k).
    """
    flat = x.ndim == 2
    maps = (x[None] if flat else x.permute(2, 0, 1))[None].float()
    width, height = image_size
    # pixel centers of the image in the coordinates of grid_sample: -1 to 1 over the map
    ys = (torch.arange(height) + 0.5) * (input_size[0] / height / stride / x.shape[0]) * 2 - 1
    xs = (torch.arange(width) + 0.5) * (input_size[1] / width / stride / x.shape[1]) * 2 - 1
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1)[None]
    mode = "bilinear" if smooth else "nearest"
    placed = F.grid_sample(maps, grid, mode, padding_mode="border", align_corners=False)[0]
    return placed[0] if flat else placed.permute(1, 2, 0)


def cell_to_pixel(
    cells: Tensor, stride: int, input_size: Sequence[int], image_size: Sequence[int]
) -> Tensor:
    """Converts cells (..., 2), as (x, y), to their centers in pixels of an image."""
    factors = [p / i for p, i in zip(image_size, reversed(input_size), strict=True)]
    return (cells.double() + 0.5) * stride * torch.tensor(factors).double()


def colorize(x: Tensor, colormap: str = COLORMAP) -> np.ndarray:
    """(h, w) in [0, 1] -> (h, w, 3) uint8."""
    import matplotlib  # slow to import, and only needed here

    colors = matplotlib.colormaps[colormap](np.asarray(x, np.float64), bytes=True)
    return np.ascontiguousarray(colors[..., :3])


def overlay(image: Image.Image, x: Tensor) -> Image.Image:
    """Draws a heat map (height, width) in [0, 1] over an image of that size.

    The image is gray where the map is low, and almost covered where it is high.
    """
    gray = np.asarray(image.convert("L"), np.float64)[..., None]
    alpha = 0.25 + 0.6 * np.asarray(x, np.float64)[..., None]
    mixed = (1 - alpha) * gray + alpha * colorize(x)
    return Image.fromarray(mixed.round().astype(np.uint8))


def rgb_image(x: Tensor) -> Image.Image:
    """Converts (height, width, 3) in [0, 1] to an image."""
    return Image.fromarray((np.asarray(x, np.float64) * 255).round().astype(np.uint8))


def root_mean_square(x: Tensor) -> Tensor:
    """Returns the root mean square over the channels: (C, h, w) -> (h, w)."""
    return x.float().square().mean(dim=0).sqrt()
