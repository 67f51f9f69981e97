# SPDX-License-Identifier: Apache-2.0
"""A minimal method. Shape shorthand: N images, (h, w) cells of the feature map, D embedding."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, detector_postprocess
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torchvision.ops import nms


def add_example_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.EXAMPLE`` in place."""
    cfg.MODEL.EXAMPLE = CfgNode()
    # Width and height of every box, in pixels.
    cfg.MODEL.EXAMPLE.BOX_SIZE = [32.0, 80.0]


@META_ARCH_REGISTRY.register()
class ExampleMethod(nn.Module):
    """Every cell of a feature map is a box of the same size, with a score."""

    @configurable
    def __init__(self, *, backbone, embed_dim, num_pids, box_size, pixel_mean, pixel_std):
        super().__init__()
        self.backbone, self.box_size = backbone, box_size
        self.name, shape = list(backbone.output_shape().items())[-1]
        self.stride = shape.stride
        self.score = nn.Conv2d(shape.channels, 1, 3, padding=1)
        self.pooler = ROIPooler((4, 2), [1 / shape.stride], 2, "ROIAlignV2")
        self.embed = nn.Linear(shape.channels * 8, embed_dim)
        self.classify = nn.Linear(embed_dim, num_pids)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg):
        return {
            "backbone": build_backbone(cfg),
            "embed_dim": cfg.MODEL.REID.EMBED_DIM,
            "num_pids": cfg.MODEL.REID.NUM_PIDS,
            "box_size": cfg.MODEL.EXAMPLE.BOX_SIZE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs):
        if not self.training:
            return self.inference(batched_inputs)
        _, features = self.extract(batched_inputs)
        targets = [x["instances"].to(features.device) for x in batched_inputs]
        scores = self.score(features)[:, 0]
        wanted = torch.zeros_like(scores)
        for cells, target in zip(wanted, targets, strict=True):
            x, y = (target.gt_boxes.get_centers() / self.stride).long().unbind(1)
            cells[y.clamp(0, cells.shape[0] - 1), x.clamp(0, cells.shape[1] - 1)] = 1
        pids = torch.cat([target.gt_pids for target in targets])
        logits = self.classify(self.embed_boxes(features, [x.gt_boxes for x in targets]))
        return {
            "loss_score": F.binary_cross_entropy_with_logits(scores, wanted),
            "loss_reid": F.cross_entropy(10 * logits[pids >= 0], pids[pids >= 0], reduction="sum")
            / (pids >= 0).sum().clamp(min=1),
        }

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        images, features = self.extract(batched_inputs)
        found = detected_instances or [
            self.detect(scores[0].sigmoid(), size)
            for scores, size in zip(self.score(features), images.image_sizes, strict=True)
        ]
        sizes = [len(x) for x in found]
        feats = self.embed_boxes(features, [x.pred_boxes for x in found]).split(sizes)
        for instances, reid_feats in zip(found, feats, strict=True):
            instances.reid_feats = reid_feats
        if not do_postprocess:
            return found
        nothing = Instances((0, 0), pred_boxes=Boxes(features.new_zeros(0, 4)))
        queries = [x.get("queries", nothing).to(features.device) for x in batched_inputs]
        sizes = [len(x) for x in queries]
        query_feats = self.embed_boxes(features, [x.pred_boxes for x in queries]).split(sizes)
        return [
            {"instances": detector_postprocess(i, x["height"], x["width"]), "query_feats": feats}
            for i, x, feats in zip(found, batched_inputs, query_feats, strict=True)
        ]

    def detect(self, scores, size):
        y, x = torch.meshgrid(*(torch.arange(n, device=scores.device) for n in scores.shape))
        centers = (torch.stack([x, y], 2).flatten(0, 1) + 0.5) * self.stride
        half = centers.new_tensor(self.box_size) / 2
        boxes = Boxes(torch.cat([centers - half, centers + half], 1))
        boxes.clip(size)
        keep = nms(boxes.tensor, scores.flatten(), 0.4)[:10]
        return Instances(
            size,
            pred_boxes=boxes[keep],
            scores=scores.flatten()[keep],
            pred_classes=torch.zeros_like(keep),
        )

    def embed_boxes(self, features, boxes):
        return F.normalize(self.embed(self.pooler([features], boxes).flatten(1)), dim=1)

    def extract(self, batched_inputs):
        images = [(x["image"].to(self.pixel_mean.device) - self.pixel_mean) / self.pixel_std
                  for x in batched_inputs]  # fmt: skip
        images = ImageList.from_tensors(images, self.backbone.size_divisibility or self.stride)
        return images, self.backbone(images.tensor)[self.name]
