# SPDX-License-Identifier: Apache-2.0
"""Anchors: reference boxes at every cell of every feature map.

Shape shorthand: L feature maps, A anchors per cell, Hi x Wi cells of map i.
The anchors of a map are ordered by row, column, size and aspect ratio.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
from detectron2._lite import absent_class
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from fvcore.common.registry import Registry
from torch import nn

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = """
Anchor generators, called as `obj(cfg, input_shape)` with the `ShapeSpec` of each feature map; they
return an `nn.Module` that maps a list of feature maps to a list of `Boxes`.
"""

RotatedAnchorGenerator = absent_class(__name__, "RotatedAnchorGenerator")


class BufferList(nn.Module):
    """A list of buffers that are not saved in checkpoints."""

    def __init__(self, buffers):
        super().__init__()
        for index, buffer in enumerate(buffers):
            self.register_buffer(str(index), buffer, persistent=False)

    def __len__(self):
        return len(self._buffers)

    def __iter__(self):
        return iter(self._buffers.values())


def _per_level(params: Sequence, num_levels: int, name: str) -> Sequence:
    """Returns one list per level, from one list for all levels or one list per level."""
    assert isinstance(params, Sequence), f"anchor {name} must be a list, got {params!r}"
    assert len(params), f"anchor {name} must not be empty"
    if not isinstance(params[0], Sequence):
        params = [params]
    if len(params) == 1:
        params = list(params) * num_levels
    assert len(params) == num_levels, (
        f"anchor {name} must be one list, or {num_levels} lists for the feature maps; got "
        f"{len(params)} lists"
    )
    return params


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """The anchors of Faster R-CNN.

    Args:
        sizes: List of sizes in pixels (square roots of areas) for each level, or for all levels.
        aspect_ratios: List of ratios of height to width for each level, or for all levels.
        strides: Stride of each feature map.
        offset: Center of an anchor in its cell, in [0, 1) relative to the stride.
    """

    box_dim: Final[int] = 4
    """Number of parameters of a box."""

    @configurable
    def __init__(self, *, sizes, aspect_ratios, strides, offset=0.5):
        super().__init__()
        self.strides = strides
        self.num_features = len(self.strides)
        sizes = _per_level(sizes, self.num_features, "sizes")
        aspect_ratios = _per_level(aspect_ratios, self.num_features, "aspect_ratios")
        self.cell_anchors = BufferList(
            self.generate_cell_anchors(s, r).float()
            for s, r in zip(sizes, aspect_ratios, strict=True)
        )
        self.offset = offset
        assert 0 <= offset < 1, f"anchor offset {offset} is outside [0, 1)"

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]):
        """Returns the arguments of ``__init__``."""
        return {
            "sizes": cfg.MODEL.ANCHOR_GENERATOR.SIZES,
            "aspect_ratios": cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS,
            "strides": [spec.stride for spec in input_shape],
            "offset": cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
        }

    @property
    @torch.jit.unused
    def num_anchors(self) -> list[int]:
        """Number of anchors A per cell of each feature map."""
        return [len(cell) for cell in self.cell_anchors]

    @property
    @torch.jit.unused
    def num_cell_anchors(self) -> list[int]:
        """Alias of ``num_anchors``."""
        return self.num_anchors

    def generate_cell_anchors(
        self, sizes=(32, 64, 128, 256, 512), aspect_ratios=(0.5, 1, 2)
    ) -> torch.Tensor:
        """Returns the (A, 4) anchors of a cell, centered at the origin.

        Args:
            sizes: Sizes of one feature map.
            aspect_ratios: Aspect ratios of one feature map.
        """
        half_sides = []
        for size in sizes:
            for ratio in aspect_ratios:
                width = math.sqrt(size**2.0 / ratio)
                half_sides.append((width / 2.0, ratio * width / 2.0))
        return torch.tensor([[-x, -y, x, y] for x, y in half_sides])

    def _grid_anchors(self, grid_sizes: list[list[int]]) -> list[torch.Tensor]:
        """Returns the (Hi*Wi*A, 4) anchors of each level."""
        cells: list[torch.Tensor] = []
        for _, buffer in self.cell_anchors.named_buffers():
            cells.append(buffer)
        anchors: list[torch.Tensor] = []
        for level, cell in enumerate(cells):
            shifts = _grid_shifts(grid_sizes[level], self.strides[level], self.offset, cell)
            anchors.append((shifts[:, None] + cell[None]).reshape(-1, 4))
        return anchors

    def forward(self, features: list[torch.Tensor]) -> list[Boxes]:
        """Returns the anchors of each level, Boxes of length Hi*Wi*A, for every image.

        Args:
            features: For each level, (N, C, Hi, Wi) features, of which only the size is used.
        """
        grid_sizes = [feature.shape[-2:] for feature in features]
        return [Boxes(anchors) for anchors in self._grid_anchors(grid_sizes)]


def _grid_shifts(size: list[int], stride: int, offset: float, like: torch.Tensor) -> torch.Tensor:
    """Returns the (Hi*Wi, 4) positions (x, y, x, y) of the cells."""
    height, width = size[0], size[1]
    start = offset * stride
    ys = torch.arange(start, height * stride, step=stride, dtype=torch.float32, device=like.device)
    xs = torch.arange(start, width * stride, step=stride, dtype=torch.float32, device=like.device)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    points = torch.stack((x.reshape(-1), y.reshape(-1)), dim=1)
    return torch.cat((points, points), dim=1)


def build_anchor_generator(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """Builds the anchor generator named by cfg.MODEL.ANCHOR_GENERATOR.NAME."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)
