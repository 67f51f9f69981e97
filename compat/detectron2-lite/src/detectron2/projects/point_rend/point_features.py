# SPDX-License-Identifier: Apache-2.0
"""Feature maps read at points.

Shape shorthand: R regions, P points of each, S side of a grid; coordinates are (x, y).
"""

import torch
from detectron2._lite import absent
from torch.nn import functional as F

__all__ = ["generate_regular_grid_point_coords", "get_point_coords_wrt_image", "point_sample"]

__getattr__ = absent(
    __name__,
    "get_uncertain_point_coords_on_grid",
    "get_uncertain_point_coords_with_randomness",
    "point_sample_fine_grained_features",
    "sample_point_labels",
)


def point_sample(input: torch.Tensor, point_coords: torch.Tensor, **kwargs) -> torch.Tensor:
    """Interpolates feature maps at points.

    Args:
        input: (N, C, H, W) features.
        point_coords: (N, P, 2) or (N, H', W', 2) points in [0, 1], (0, 0) the top left corner.
        **kwargs: for ``torch.nn.functional.grid_sample``.

    Returns:
        (N, C, P) or (N, C, H', W').
    """
    is_list = point_coords.dim() == 3
    grid = point_coords.unsqueeze(2) if is_list else point_coords
    sampled = F.grid_sample(input, 2.0 * grid - 1.0, **kwargs)
    return sampled.squeeze(3) if is_list else sampled


def generate_regular_grid_point_coords(R: int, side_size: int, device) -> torch.Tensor:
    """Returns the (R, S * S, 2) centers of the cells of a regular grid in [0, 1], row by row."""
    centers = (torch.arange(side_size, device=device) + 0.5) / side_size
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    return torch.stack((x, y), dim=-1).reshape(1, -1, 2).expand(R, -1, -1)


def get_point_coords_wrt_image(
    boxes_coords: torch.Tensor, point_coords: torch.Tensor
) -> torch.Tensor:
    """Moves (R, P, 2) points from [0, 1] of each of (R, 4) boxes to the frame of the boxes."""
    with torch.no_grad():
        origin, size = boxes_coords[:, :2], boxes_coords[:, 2:] - boxes_coords[:, :2]
        return point_coords * size[:, None, :] + origin[:, None, :]
