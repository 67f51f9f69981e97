# SPDX-License-Identifier: Apache-2.0
"""DiffPS as a graph of tensors, for ``torch.export`` and ONNX.

The graph has three independent parts, so that a file holds all weights once: ``encode`` computes
the maps that the heads read, from an image or from the activations of the frozen backbone;
``detect`` is DGRPN and the box branch; ``embed`` is the re-ID branch with SFAN.
:class:`person_search.search.onnx_model.OnnxModel` runs such a file.

Shape shorthand: C channels, n detections, Q given boxes, D embedding dimension.
"""

from typing import Any

import torch
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import nms

from diffps.backbone import MAP, DiffusionBackbone
from diffps.meta_arch import DiffPS
from diffps.roi_heads import MIN_SIDE
from person_search.modeling.export import ExportedModel, OneImagePooler, image_of_cells

OUTPUTS = ("pred_boxes", "scores", "reid_feats")


class DiffPSGraph(nn.Module):
    """The parts of a model, for one image.

    Args:
        model: Model in eval mode, on the CPU.
        heads_only: Whether the graph takes the activations of the backbone instead of an image.

    Raises:
        ValueError: If a setting of the model is not supported outside of PyTorch.
    """

    def __init__(self, model: DiffPS, heads_only: bool) -> None:
        super().__init__()
        self.model, self.heads_only = model, heads_only
        rpn, heads = model.proposal_generator, model.roi_heads
        self.names = [*dict.fromkeys([model.det_in_feature, *sum(model.msfrn.levels, [])])]
        if rpn.modulator is not None:
            self.names.append(MAP)
        self.maps = [*dict.fromkeys([rpn.in_features[0], heads.box_in_features[0], "reid"])]
        if isinstance(model.backbone, DiffusionBackbone) and not heads_only:
            self.frozen = nn.ModuleList(model.backbone.check_exportable())

    def forward(
        self, inputs: list[Tensor], size: Tensor, maps: list[Tensor], boxes: Tensor
    ) -> tuple[Tensor, ...]:
        """Computes the maps of an image, and detections and embeddings on given maps.

        Args:
            inputs: Image, 0 to 255, padded at the right and below with the pixel mean, see
                :func:`image_of_cells`; or the activations ``names``, (1, C, H_l, W_l) each, of
                which ``attn`` is (1, 1, H_l, W_l) in [0, 1].
            size: Height and width of the image without padding (2,).
            maps: The maps ``maps``, (1, C, H, W) each.
            boxes: Boxes to embed (Q, 4), in pixels of the image.

        Returns:
            The maps of ``inputs``; boxes (n, 4) in pixels and scores (n,), best first; embeddings
            (Q, D) of unit norm.
        """
        computed, given = self.encode(inputs, size), dict(zip(self.maps, maps, strict=True))
        return (
            *(computed[name] for name in self.maps),
            *self.detect(given, size),
            self.model.roi_heads.reid_head.embed(given, [Boxes(boxes)]),
        )

    def encode(self, inputs: list[Tensor], size: Tensor) -> dict[str, Tensor]:
        """Computes the maps that the heads read."""
        model = self.model
        if self.heads_only:
            features = dict(zip(self.names, inputs, strict=True))
        else:
            image = (image_of_cells(inputs[0]) - model.pixel_mean) / model.pixel_std
            features = model.backbone.compute(image, size)
        return model.detection_maps(features) | {"reid": model.msfrn(features)}

    def detect(self, maps: dict[str, Tensor], size: Tensor) -> tuple[Tensor, Tensor]:
        """Returns boxes (n, 4) and scores (n,): the inference of DGRPN and of the box branch."""
        heads = self.model.roi_heads
        proposals, predictor = self.propose(maps, size), heads.box_predictor
        # without Boxes, whose constructor asks for the number of boxes
        rois = torch.cat([torch.zeros_like(proposals[:, :1]), proposals], dim=1)
        pooled = heads.box_pooler.level_poolers[0](maps[heads.box_in_features[0]], rois)
        logits, deltas = predictor(heads.box_head(pooled))
        scores = logits.softmax(dim=1)[:, 0]
        boxes = clip(predictor.box2box_transform.apply_deltas(deltas, proposals), size)
        boxes, scores = select(boxes, scores, scores > predictor.test_score_thresh)
        kept = nms(boxes, scores, predictor.test_nms_thresh)[: predictor.test_topk_per_image]
        boxes, scores = boxes[kept], scores[kept]
        return select(boxes, scores, larger(boxes, MIN_SIDE))

    def propose(self, maps: dict[str, Tensor], size: Tensor) -> Tensor:
        """Returns the proposals of DGRPN, (at most POST_NMS_TOPK_TEST, 4)."""
        rpn = self.model.proposal_generator
        guided = maps[rpn.in_features[0]]
        (logits,), (deltas,) = rpn.rpn_head([guided])
        generator = rpn.anchor_generator
        stride, (cell_anchors,) = generator.strides[0], generator.cell_anchors
        rows, columns = ((torch.arange(n) + generator.offset) * stride for n in guided.shape[2:])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        anchors = torch.stack([x, y, x, y], dim=-1)[:, :, None] + cell_anchors
        logits = logits.permute(0, 2, 3, 1).flatten()
        deltas = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4)
        count = torch.sym_min(logits.shape[0], rpn.pre_nms_topk[False])
        logits, best = logits.topk(count)
        boxes = rpn.box2box_transform.apply_deltas(deltas[best], anchors.reshape(-1, 4)[best])
        boxes = clip(boxes, size)
        boxes, logits = select(boxes, logits, larger(boxes, rpn.min_box_size))
        return boxes[nms(boxes, logits, rpn.nms_thresh)[: rpn.post_nms_topk[False]]]


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Clips boxes (N, 4) to an image of a size (h, w)."""
    return torch.minimum(boxes.clamp(min=0), size.flip(0).repeat(2))


def larger(boxes: Tensor, side: float) -> Tensor:
    """Returns whether both sides of boxes (N, 4) exceed a length."""
    return ((boxes[:, 2:] - boxes[:, :2]) > side).all(dim=1)


def select(boxes: Tensor, scores: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the boxes and scores where ``keep`` is true."""
    (rows,) = keep.nonzero(as_tuple=True)
    return boxes[rows], scores[rows]


def export_model(model: DiffPS, max_side: int, heads_only: bool) -> ExportedModel:
    """Implements :meth:`DiffPS.export`."""
    graph = DiffPSGraph(model, heads_only)
    divisor, spec = model.backbone.size_divisibility, model.backbone.output_shape()
    # 3 x 5 cells and 11 boxes: sizes of an example must not coincide with constants
    inputs = [torch.full((1, 3, 3, divisor, 5, divisor), 100.0)]
    size = torch.tensor([3.0 * divisor, 5.0 * divisor])
    with torch.no_grad():
        if heads_only:
            inputs = [
                torch.rand(
                    1, spec[n].channels, *(cells * divisor // spec[n].stride for cells in (3, 5))
                )
                for n in graph.names
            ]
        computed = graph.encode(inputs, size)
        any_size = torch.export.Dim.DYNAMIC
        axes = (2, 3) if heads_only else (2, 4)
        reid_head = model.roi_heads.reid_head
        pooler, reid_head.pooler = reid_head.pooler, OneImagePooler(reid_head.pooler)
        try:
            program = torch.export.export(
                graph,
                (inputs, size, [computed[name] for name in graph.maps], torch.rand(11, 4) * 50),
                dynamic_shapes=(
                    [dict.fromkeys(axes, any_size) for _ in inputs],
                    {},
                    [{2: any_size, 3: any_size} for _ in graph.maps],
                    {0: any_size},
                ),
                strict=False,
            )
        finally:
            reid_head.pooler = pooler
    names = graph.names if heads_only else ["image"]
    return ExportedModel(
        program,
        (*names, "size", *(f"{name}_in" for name in graph.maps), "boxes"),
        (*graph.maps, *OUTPUTS),
        describe(model, graph, max_side),
    )


def describe(model: DiffPS, graph: DiffPSGraph, max_side: int) -> dict[str, Any]:
    """Returns what a program needs to run the graph, as plain types."""
    return {
        "method": "DiffPS",
        "max_side": max_side,
        "divisor": model.backbone.size_divisibility,
        "pixel_mean": model.pixel_mean.flatten().tolist(),
        "pixel_std": model.pixel_std.flatten().tolist(),
        "features": {
            name: {"channels": s.channels, "stride": s.stride}
            for name, s in model.backbone.output_shape().items()
            if graph.heads_only and name in graph.names
        },
        "maps": graph.maps,
        "embed_dim": model.roi_heads.reid_head.embedder.embed_dim,
    }
