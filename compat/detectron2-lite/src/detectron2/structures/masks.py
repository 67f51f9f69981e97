# SPDX-License-Identifier: Apache-2.0
"""Mask annotations. They are loaded and transformed; models for masks are absent.

Shape shorthand: N masks; H, W height and width of the image.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch

from .boxes import Boxes


def polygons_to_bitmask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Returns the (H, W) bool mask of the union of polygons x0, y0, x1, y1, ..."""
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    encoded = mask_util.frPyObjects([np.asarray(p).tolist() for p in polygons], height, width)
    return mask_util.decode(mask_util.merge(encoded)).astype(bool)


class BitMasks:
    """N masks of one image as bitmaps.

    Attributes:
        tensor: (N, H, W) bool tensor.
    """

    def __init__(self, tensor: torch.Tensor | np.ndarray):
        tensor = torch.as_tensor(tensor).to(torch.bool)
        if tensor.dim() != 3:
            raise AssertionError(f"masks must be (N, H, W), got {tuple(tensor.shape)}")
        self.image_size = tensor.shape[1:]
        self.tensor = tensor

    def to(self, *args: Any, **kwargs: Any) -> "BitMasks":
        """Calls ``Tensor.to`` on the masks."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        """Device of the masks."""
        return self.tensor.device

    def __getitem__(self, item: int | slice | torch.BoolTensor) -> "BitMasks":
        """Indexes along N; an integer gives an object with N = 1."""
        return BitMasks(self.tensor[item][None] if isinstance(item, int) else self.tensor[item])

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield from self.tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    def nonempty(self) -> torch.Tensor:
        """Returns (N,) bool: the mask is not empty."""
        return self.tensor.flatten(1).any(dim=1)

    def get_bounding_boxes(self) -> Boxes:
        """Returns the smallest boxes around the masks; (0, 0, 0, 0) for an empty mask."""
        boxes = torch.zeros(len(self), 4)
        columns, rows = self.tensor.any(dim=1), self.tensor.any(dim=2)
        for box, column, row in zip(boxes, columns, rows, strict=True):
            x, y = torch.where(column)[0], torch.where(row)[0]
            if len(x) > 0:
                box[:] = torch.stack((x[0], y[0], x[-1] + 1, y[-1] + 1))
        return Boxes(boxes)

    @staticmethod
    def from_polygon_masks(
        polygon_masks: "PolygonMasks | list[list[np.ndarray]]", height: int, width: int
    ) -> "BitMasks":
        """Rasterizes polygons to masks of (height, width)."""
        if isinstance(polygon_masks, PolygonMasks):
            polygon_masks = polygon_masks.polygons
        masks = [polygons_to_bitmask(polygons, height, width) for polygons in polygon_masks]
        if not masks:
            return BitMasks(torch.empty(0, height, width, dtype=torch.bool))
        return BitMasks(torch.from_numpy(np.stack(masks)))

    @staticmethod
    def cat(bitmasks_list: list["BitMasks"]) -> "BitMasks":
        """Concatenates masks of the same image size along N."""
        if not bitmasks_list:
            raise AssertionError("there must be at least one BitMasks to join")
        return type(bitmasks_list[0])(torch.cat([masks.tensor for masks in bitmasks_list], dim=0))


class PolygonMasks:
    """N masks of one image as polygons.

    Attributes:
        polygons: For each instance the list of its polygons, each a float64 array
            x0, y0, x1, y1, ... in pixels.
    """

    def __init__(self, polygons: list[list[torch.Tensor | np.ndarray]]):
        if not isinstance(polygons, list):
            raise ValueError(
                "PolygonMasks takes a list (instances) of lists (their polygons), "
                f"got {type(polygons).__name__}"
            )
        self.polygons = [self._checked(polygons_of_one) for polygons_of_one in polygons]

    @staticmethod
    def _checked(polygons: list[torch.Tensor | np.ndarray]) -> list[np.ndarray]:
        if not isinstance(polygons, list):
            raise ValueError(f"the polygons of an instance must be a list, got {type(polygons)}")
        arrays = [
            np.asarray(p.cpu() if isinstance(p, torch.Tensor) else p).astype(np.float64)
            for p in polygons
        ]
        for array in arrays:
            if len(array) % 2 != 0 or len(array) < 6:
                raise ValueError(f"a polygon needs at least 3 points, got {len(array)} numbers")
        return arrays

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        """Returns the object itself: polygons are always NumPy arrays."""
        return self

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def __getitem__(self, item: int | slice | list[int] | torch.BoolTensor) -> "PolygonMasks":
        """Indexes along N; an integer gives an object with N = 1."""
        if isinstance(item, int):
            return PolygonMasks([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, (torch.Tensor, np.ndarray)):
            index = np.asarray(item.cpu() if isinstance(item, torch.Tensor) else item)
            if index.ndim != 1:
                raise AssertionError(f"an index must have one dimension, got {index.shape}")
            item = (np.flatnonzero(index) if index.dtype == bool else index).tolist()
        return PolygonMasks([self.polygons[i] for i in item])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    def nonempty(self) -> torch.Tensor:
        """Returns (N,) bool: the instance has a polygon."""
        return torch.tensor([len(polygons) > 0 for polygons in self.polygons], dtype=torch.bool)

    def get_bounding_boxes(self) -> Boxes:
        """Returns the smallest boxes around the polygons of each instance."""
        boxes = torch.zeros(len(self), 4)
        for box, polygons in zip(boxes, self.polygons, strict=True):
            points = np.concatenate([p.reshape(-1, 2) for p in polygons] or [np.zeros((1, 2))])
            box[:2] = torch.from_numpy(points.min(axis=0))
            box[2:] = torch.from_numpy(points.max(axis=0))
        return Boxes(boxes)

    def area(self) -> torch.Tensor:
        """Returns the (N,) sums of the areas of the polygons; overlaps count twice."""
        return torch.tensor([sum(map(_shoelace_area, polygons)) for polygons in self.polygons])

    @staticmethod
    def cat(polymasks_list: list["PolygonMasks"]) -> "PolygonMasks":
        """Concatenates masks along N."""
        if not polymasks_list:
            raise AssertionError("there must be at least one PolygonMasks to join")
        joined = itertools.chain.from_iterable(masks.polygons for masks in polymasks_list)
        return type(polymasks_list[0])(list(joined))


def _shoelace_area(polygon: np.ndarray) -> float:
    x, y = polygon[0::2], polygon[1::2]
    return 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
