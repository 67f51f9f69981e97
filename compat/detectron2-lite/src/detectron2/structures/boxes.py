# SPDX-License-Identifier: Apache-2.0
"""Upright boxes in absolute coordinates.

Shape shorthand: N, M numbers of boxes. A box is (x0, y0, x1, y1) in pixels; its width is x1 - x0.
"""

from typing import List, Tuple  # noqa: UP035  TorchScript reads these annotations

import torch
from torch import device

from .box_mode import BoxMode  # noqa: F401


class Boxes:
    """N boxes, with some of the methods of a tensor.

    Args:
        tensor: (N, 4) boxes; empty input becomes (0, 4).

    Attributes:
        tensor: (N, 4) float32 tensor, one box per row.
    """

    def __init__(self, tensor: torch.Tensor):
        if isinstance(tensor, torch.Tensor):
            rows = tensor.to(torch.float32)
        else:
            rows = torch.as_tensor(tensor, dtype=torch.float32, device=torch.device("cpu"))
        if rows.numel() == 0:
            # reshape, not a new tensor, so that gradients can flow
            rows = rows.reshape(-1, 4)
        assert rows.dim() == 2 and rows.size(1) == 4, f"boxes must be (N, 4), got {rows.shape}"
        self.tensor = rows

    def clone(self) -> "Boxes":
        """Returns a deep copy."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device):
        """Returns the boxes on ``device``."""
        return Boxes(self.tensor.to(device=device))

    def area(self) -> torch.Tensor:
        """Returns the (N,) areas in square pixels."""
        size = self.tensor[:, 2:] - self.tensor[:, :2]
        return size[:, 0] * size[:, 1]

    def clip(self, box_size: Tuple[int, int]) -> None:  # noqa: UP006
        """Clips the boxes, in place, to an image of (height, width) pixels."""
        assert torch.isfinite(self.tensor).all(), "infinite or NaN coordinates cannot be clipped"
        height, width = box_size
        x = self.tensor[:, 0::2].clamp(min=0, max=width)
        y = self.tensor[:, 1::2].clamp(min=0, max=height)
        self.tensor = torch.stack((x, y), dim=2).flatten(1)

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """Returns (N,) bool: both sides of the box are longer than ``threshold``."""
        size = self.tensor[:, 2:] - self.tensor[:, :2]
        return (size[:, 0] > threshold) & (size[:, 1] > threshold)

    def __getitem__(self, item) -> "Boxes":
        """Indexes along N; an integer gives an object with N = 1."""
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, -1))
        rows = self.tensor[item]
        assert rows.dim() == 2, f"Indexing on Boxes with {item} failed to return a matrix!"
        return Boxes(rows)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return "Boxes(" + str(self.tensor) + ")"

    def inside_box(
        self,
        box_size: Tuple[int, int],  # noqa: UP006
        boundary_threshold: int = 0,
    ) -> torch.Tensor:
        """Returns (N,) bool: the box lies inside the reference box (0, 0, width, height).

        Args:
            box_size: (height, width) of the reference box.
            boundary_threshold: Number of pixels by which a box may exceed each side.
        """
        height, width = box_size
        return (
            (self.tensor[:, 0] >= -boundary_threshold)
            & (self.tensor[:, 1] >= -boundary_threshold)
            & (self.tensor[:, 2] < width + boundary_threshold)
            & (self.tensor[:, 3] < height + boundary_threshold)
        )

    def get_centers(self) -> torch.Tensor:
        """Returns the (N, 2) centers as (x, y)."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Scales the coordinates of each axis in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: List["Boxes"]) -> "Boxes":  # noqa: UP006
        """Concatenates boxes along N; an empty list gives N = 0."""
        if len(boxes_list) == 0:
            return cls(torch.zeros(0, 4))
        # torch.cat, because layers.cat may return its input
        return cls(torch.cat([boxes.tensor for boxes in boxes_list], dim=0))

    @property
    def device(self) -> device:
        """Device of the boxes."""
        return self.tensor.device

    # TorchScript does not support the return type Iterator
    @torch.jit.unused
    def __iter__(self):
        """Yields the boxes one by one, as (4,) tensors."""
        yield from self.tensor


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Returns the (N, M) intersection areas of N boxes and M boxes."""
    first, second = boxes1.tensor, boxes2.tensor
    top_left = torch.max(first[:, None, :2], second[:, :2])
    bottom_right = torch.min(first[:, None, 2:], second[:, 2:])
    return (bottom_right - top_left).clamp_(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Returns the (N, M) intersections over unions (IoU)."""
    intersection = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - intersection
    return _ratio(intersection, union)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Returns the (N, M) intersections over the areas of ``boxes2`` (IoA)."""
    intersection = pairwise_intersection(boxes1, boxes2)
    return _ratio(intersection, boxes2.area().expand_as(intersection))


def _ratio(intersection: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    # where(), because empty boxes would give 0 / 0
    zero = torch.zeros(1, dtype=intersection.dtype, device=intersection.device)
    return torch.where(intersection > 0, intersection / area, zero)


def pairwise_point_box_distance(points: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """Returns the (N, M, 4) distances from (N, 2) points to the sides of M boxes.

    The order is left, top, right, bottom. All four are positive for a point inside the box.
    """
    point = points[:, None, :]
    to_top_left = point - boxes.tensor[:, :2]
    to_bottom_right = boxes.tensor[:, 2:] - point
    return torch.cat((to_top_left, to_bottom_right), dim=2)


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Returns the (N,) IoUs of the boxes with the same index."""
    assert len(boxes1) == len(boxes2), (
        f"both must hold the same number of boxes, got {len(boxes1)} and {len(boxes2)}"
    )
    first, second = boxes1.tensor, boxes2.tensor
    top_left = torch.max(first[:, :2], second[:, :2])
    bottom_right = torch.min(first[:, 2:], second[:, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=1)
    return intersection / (boxes1.area() + boxes2.area() - intersection)
