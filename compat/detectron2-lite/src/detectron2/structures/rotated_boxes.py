# SPDX-License-Identifier: Apache-2.0
"""Rotated boxes as a container only: what the visualizer and the data code hold.

Their overlaps need Detectron2's compiled operators, so IoU and everything above it is absent.
"""

import torch

from .boxes import Boxes


class RotatedBoxes(Boxes):
    """N boxes as (center x, center y, width, height, angle).

    Attributes:
        tensor: (N, 5) float tensor; pixels, and degrees counter-clockwise.
    """

    def __init__(self, tensor: torch.Tensor):
        where = tensor.device if isinstance(tensor, torch.Tensor) else "cpu"
        rows = torch.as_tensor(tensor, dtype=torch.float32, device=where)
        rows = rows if rows.numel() > 0 else rows.reshape(0, 5)
        if rows.dim() != 2 or rows.size(1) != 5:
            raise AssertionError(f"rotated boxes must be (N, 5), got {tuple(rows.shape)}")
        self.tensor = rows

    def clone(self) -> "RotatedBoxes":
        """Returns a copy that shares no memory."""
        return RotatedBoxes(self.tensor.clone())

    def to(self, device: torch.device, non_blocking: bool = False) -> "RotatedBoxes":
        """Returns the boxes on ``device``."""
        return RotatedBoxes(self.tensor.to(device=device, non_blocking=non_blocking))

    def area(self) -> torch.Tensor:
        """Returns the (N,) areas in square pixels."""
        return self.tensor[:, 2] * self.tensor[:, 3]

    def normalize_angles(self) -> None:
        """Brings the angles into [-180, 180). Changes the boxes."""
        self.tensor[:, 4] = (self.tensor[:, 4] + 180.0) % 360.0 - 180.0

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """Returns (N,) bool: both sides of the box are longer than ``threshold``."""
        return (self.tensor[:, 2] > threshold) & (self.tensor[:, 3] > threshold)

    def get_centers(self) -> torch.Tensor:
        """Returns the (N, 2) centers as (x, y)."""
        return self.tensor[:, :2]

    def __getitem__(self, item) -> "RotatedBoxes":
        """Indexes along N; an integer gives an object with N = 1."""
        rows = self.tensor[item]
        return RotatedBoxes(rows.view(1, -1) if isinstance(item, int) else rows)

    def __repr__(self) -> str:
        return f"RotatedBoxes({self.tensor})"

    def clip(self, box_size: tuple[int, int], clip_angle_threshold: float = 1.0) -> None:
        """Clips boxes that are within the threshold (degrees) of upright; leaves the others."""
        self.normalize_angles()
        upright = torch.where(self.tensor[:, 4].abs() <= clip_angle_threshold)[0]
        half = self.tensor[upright, 2:4] / 2
        corners = Boxes(
            torch.cat((self.tensor[upright, :2] - half, self.tensor[upright, :2] + half), dim=1)
        )
        corners.clip(box_size)
        size = corners.tensor[:, 2:] - corners.tensor[:, :2]
        self.tensor[upright, :2] = corners.get_centers()
        # never larger than before, whatever rounding does
        self.tensor[upright, 2:4] = torch.min(self.tensor[upright, 2:4], size)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> torch.Tensor:
        """Returns (N,) bool: the upright box around the rotated one stays within the image."""
        angle = self.tensor[:, 4] * torch.pi / 180.0
        cos, sin = angle.cos().abs(), angle.sin().abs()
        width, height = self.tensor[:, 2], self.tensor[:, 3]
        half = torch.stack((cos * width + sin * height, cos * height + sin * width), dim=1) / 2
        around = Boxes(torch.cat((self.tensor[:, :2] - half, self.tensor[:, :2] + half), dim=1))
        return around.inside_box(box_size, boundary_threshold)

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Scales the image under the boxes; sides and angle follow. Changes the boxes."""
        self.tensor[:, 0] *= scale_x
        self.tensor[:, 1] *= scale_y
        angle = self.tensor[:, 4] * torch.pi / 180.0
        cos, sin = angle.cos(), angle.sin()
        self.tensor[:, 2] *= torch.sqrt((scale_x * cos) ** 2 + (scale_y * sin) ** 2)
        self.tensor[:, 3] *= torch.sqrt((scale_x * sin) ** 2 + (scale_y * cos) ** 2)
        self.tensor[:, 4] = torch.atan2(scale_x * sin, scale_y * cos) * 180 / torch.pi

    @classmethod
    def cat(cls, boxes_list: list["RotatedBoxes"]) -> "RotatedBoxes":
        """Returns the boxes of all lists as one object; none for an empty list."""
        rows = [boxes.tensor for boxes in boxes_list]
        return cls(torch.cat(rows, dim=0) if rows else torch.zeros(0, 5))

    def __iter__(self):
        """Yields the boxes one by one, as (5,) tensors."""
        yield from self.tensor
