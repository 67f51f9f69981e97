# SPDX-License-Identifier: Apache-2.0
"""Upright boxes in absolute coordinates.

Shape shorthand: N, M numbers of boxes. A box is (x0, y0, x1, y1) in pixels; x1 - x0 is its width.
"""

from typing import List, Tuple  # noqa: UP035  TorchScript reads these annotations

import torch
from torch import device

from .box_mode import BoxMode

__all__ = [
    "BoxMode",
    "Boxes",
    "matched_pairwise_iou",
    "pairwise_intersection",
    "pairwise_ioa",
    "pairwise_iou",
    "pairwise_point_box_distance",
]


class Boxes:
    """A list of N boxes that behaves like its (N, 4) tensor where that makes sense.

    Attributes:
        tensor: (N, 4) float tensor, one box per row.
    """

    def __init__(self, tensor: torch.Tensor):
        """Takes (N, 4) boxes; anything without numbers in it becomes (0, 4)."""
        if isinstance(tensor, torch.Tensor):
            rows = tensor.to(torch.float32)
        else:
            rows = torch.as_tensor(tensor, dtype=torch.float32, device=torch.device("cpu"))
        if rows.numel() == 0:
            # reshape, and not a new tensor, so that the graph of gradients stays connected
            rows = rows.reshape(-1, 4)
        assert rows.dim() == 2 and rows.size(1) == 4, f"boxes must be (N, 4), got {rows.shape}"
        self.tensor = rows

    def clone(self) -> "Boxes":
        """Returns a copy that shares no memory."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device):
        """Returns the boxes on ``device``."""
        return Boxes(self.tensor.to(device=device))

    def area(self) -> torch.Tensor:
        """Returns the (N,) areas in square pixels."""
        size = self.tensor[:, 2:] - self.tensor[:, :2]
        return size[:, 0] * size[:, 1]

    def clip(self, box_size: Tuple[int, int]) -> None:  # noqa: UP006
        """Moves every corner into an image of (height, width) pixels. Changes the boxes."""
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
        """Indexes along N. An integer gives one box, so still an object with an N."""
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
        """Returns (N,) bool: the box stays within (0, 0, width, height) grown by the threshold.

        Args:
            box_size: (height, width) of the reference box.
            boundary_threshold: pixels by which a box may reach over each side.
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
        """Multiplies the coordinates of each axis. Changes the boxes."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: List["Boxes"]) -> "Boxes":  # noqa: UP006
        """Returns the boxes of all lists as one object; none for an empty list."""
        if len(boxes_list) == 0:
            return cls(torch.zeros(0, 4))
        # torch.cat (and not layers.cat) so that the result never shares memory with an input
        return cls(torch.cat([boxes.tensor for boxes in boxes_list], dim=0))

    @property
    def device(self) -> device:
        return self.tensor.device

    # an inferred return type would be Iterator, which TorchScript does not know
    @torch.jit.unused
    def __iter__(self):
        """Yields the boxes one by one, as (4,) tensors."""
        yield from self.tensor


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Returns the (N, M) areas common to each of N boxes and each of M boxes."""
    first, second = boxes1.tensor, boxes2.tensor
    top_left = torch.max(first[:, None, :2], second[:, :2])
    bottom_right = torch.min(first[:, None, 2:], second[:, 2:])
    return (bottom_right - top_left).clamp_(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Returns the (N, M) intersections over unions; 0 where boxes do not meet."""
    intersection = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - intersection
    return _ratio(intersection, union)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Returns the (N, M) intersections over the areas of ``boxes2``; 0 where boxes do not meet."""
    intersection = pairwise_intersection(boxes1, boxes2)
    return _ratio(intersection, boxes2.area().expand_as(intersection))


def _ratio(intersection: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    # where(), because boxes without area would give 0 / 0
    zero = torch.zeros(1, dtype=intersection.dtype, device=intersection.device)
    return torch.where(intersection > 0, intersection / area, zero)


def pairwise_point_box_distance(points: torch.Tensor, boxes: Boxes) -> torch.Tensor:
    """Returns the (N, M, 4) distances from each of (N, 2) points to the sides of each of M boxes.

    The order is left, top, right, bottom; all four are positive for a point inside the box.
    """
    point = points[:, None, :]
    to_top_left = point - boxes.tensor[:, :2]
    to_bottom_right = boxes.tensor[:, 2:] - point
    return torch.cat((to_top_left, to_bottom_right), dim=2)


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Returns the (N,) IoUs of box i of the one with box i of the other."""
    assert len(boxes1) == len(boxes2), (
        f"both must hold the same number of boxes, got {len(boxes1)} and {len(boxes2)}"
    )
    first, second = boxes1.tensor, boxes2.tensor
    top_left = torch.max(first[:, :2], second[:, :2])
    bottom_right = torch.min(first[:, 2:], second[:, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=1)
    return intersection / (boxes1.area() + boxes2.area() - intersection)
