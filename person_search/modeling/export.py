# SPDX-License-Identifier: Apache-2.0
"""What a model provides for ``person-search export``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn

from person_search.modeling.pooling import levels_of


@dataclass(frozen=True)
class ExportedModel:
    """A model as a graph.

    Attributes:
        program: Graph of ``torch.export``.
        input_names: Names of the inputs of the graph.
        output_names: Names of the outputs of the graph.
        values: What a program needs to run the graph, as plain types.
    """

    program: torch.export.ExportedProgram
    input_names: Sequence[str]
    output_names: Sequence[str]
    values: Mapping[str, Any]


@runtime_checkable
class Exports(Protocol):
    """Optional hook of a model that can leave Python."""

    backbone: Any

    def export(self, max_side: int, heads_only: bool = False) -> ExportedModel:
        """Exports the model.

        Args:
            max_side: Largest side of a padded image.
            heads_only: Whether the graph takes the activations of a frozen backbone.

        Raises:
            ValueError: If a setting of the model cannot be exported.
        """


def image_of_cells(cells: Tensor) -> Tensor:
    """Returns an image (1, 3, H, W) from the view that graphs take instead of it.

    So a side is a multiple of the divisor by its form. As a condition on a side, or as a multiple
    of a ``torch.export.Dim``, it makes the tracing of a UNet take hours.

    Args:
        cells: (1, 3, H / d, d, W / d, d) with the divisor d.
    """
    return cells.flatten(4, 5).flatten(2, 3)


class OneImagePooler(nn.Module):
    """RoI pooling of one image whose number of boxes stays open in a traced graph.

    Detectron2's pooler makes it a constant where it numbers the images.

    Args:
        pooler: Pooler to replace; its layers are used.
    """

    def __init__(self, pooler: ROIPooler) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Returns (M, C, P, P) for maps (1, C, H_l, W_l) and the boxes of the image."""
        pooler, boxes = self.pooler, box_lists[0].tensor
        rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
        if len(x) == 1:
            return pooler.level_poolers[0](x[0], rois)
        levels = levels_of(pooler, box_lists)
        pooled = x[0].new_zeros(boxes.shape[0], x[0].shape[1], *pooler.output_size)
        for level, layer in enumerate(pooler.level_poolers):
            (rows,) = (levels == level).nonzero(as_tuple=True)
            pooled.index_put_((rows,), layer(x[level], rois[rows]))
        return pooled
