# SPDX-License-Identifier: Apache-2.0
"""DiffPS as a Detectron2 meta-architecture.

Shape shorthand in this file:
    B: images. C: channels. D: length of an embedding. q: queries of an image.
Naming: ``det``, ``guided`` and ``reid`` are the maps that the heads read, beside the activations
of the frozen backbone in one dict.
"""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    Backbone,
    build_backbone,
    build_proposal_generator,
    detector_postprocess,
)
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

# The imports register the parts that a config names.
from diffps.anchors import RoundedAnchorGenerator  # noqa: F401
from diffps.det_aggregator import DetAggregator
from diffps.dgrpn import DGRPN
from diffps.initialization import initialize
from diffps.msfrn import MSFRN
from diffps.res5 import Res5
from diffps.resnet_activations import ResNetActivations  # noqa: F401
from diffps.roi_heads import DiffPSROIHeads


@META_ARCH_REGISTRY.register()
class DiffPS(nn.Module):
    """Person search on the frozen activations of a diffusion model.

    Detection and re-ID read different activations through trainable parts of their own, so that
    neither sees a gradient of the other. An image passes the backbone once, and with it its
    detections and queries.

    Training gives a dict of ``loss_*``. In eval mode every image gives ``instances``
    (``pred_boxes`` in pixels of the original image, ``scores``, ``pred_classes``, ``reid_feats``
    (n, D) of unit length) and, if the input has ``queries``, ``query_feats`` (q, D) in their order.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        det_aggregator: DetAggregator,
        det_in_feature: str,
        msfrn: MSFRN,
        proposal_generator: DGRPN,
        roi_heads: DiffPSROIHeads,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        """
        Args:
            backbone: frozen; gives named activations and ``attn``.
            det_in_feature: the activation that ``det_aggregator`` reads.
            pixel_mean, pixel_std: per channel.
        """
        super().__init__()
        self.backbone = backbone
        self.det_aggregator, self.det_in_feature = det_aggregator, det_in_feature
        self.msfrn = msfrn
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        for name, value in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg) -> dict:
        diffps = cfg.MODEL.DIFFPS
        backbone = build_backbone(cfg)
        activations = backbone.output_shape()
        det_aggregator = DetAggregator(cfg, activations)
        msfrn = MSFRN(cfg, activations)
        det_shape = ShapeSpec(
            channels=det_aggregator.dim, stride=activations[diffps.DET_AGG.IN_FEATURE].stride
        )
        reid_shape = ShapeSpec(channels=msfrn.dim, stride=activations[msfrn.levels[-1][-1]].stride)
        shapes = activations | {"det": det_shape, "guided": det_shape, "reid": reid_shape}
        _check_names(cfg, shapes)
        text_vectors = None
        if diffps.SFAN.ENABLED:
            text_vectors = backbone.word_vectors(list(diffps.SFAN.PARTS))
        roi_heads = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, shapes, text_vectors)
        initialize(diffps.HEAD.INIT, roi_heads.box_predictor, roi_heads.reid_head.embedder)
        return {
            "backbone": backbone,
            "det_aggregator": det_aggregator,
            "det_in_feature": diffps.DET_AGG.IN_FEATURE,
            "msfrn": msfrn,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": roi_heads,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def load_initial_weights(self) -> None:
        """Reads what ``MODEL.DIFFPS.HEAD.RES5_WEIGHTS`` names, where no checkpoint was loaded.

        The trainer calls it when a training starts; training loops of your own must.
        """
        for module in self.modules():
            if isinstance(module, Res5):
                module.load_initial_weights()

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalises the images and pads them to one size."""
        images = [x["image"].to(self.device).float() for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def activations(self, batched_inputs: list[dict]) -> tuple[ImageList, dict[str, Tensor]]:
        """The images and what the frozen backbone gives for them, (B, C, H, W) each."""
        images = self.preprocess_image(batched_inputs)
        keys = [x.get("image_digest") for x in batched_inputs]
        return images, self.backbone(images.tensor, images.image_sizes, keys)

    def detection_maps(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """``det``, the aggregated map, and ``guided``, modulated by the attention."""
        # float32: RoI pooling gives boxes the dtype of the map, and half is too coarse for them
        det = self.det_aggregator(features[self.det_in_feature]).float()
        return {"det": det, "guided": self.proposal_generator.guide(det, features.get("attn"))}

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training mode, predictions per image in eval mode.

        Args:
            batched_inputs: dicts of the mapper; ``image``, and in training ``instances`` with
                ``gt_boxes``, ``gt_classes``, ``gt_pids`` in its frame. No people is possible.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images, features = self.activations(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features |= self.detection_maps(features)
        features["reid"] = self.msfrn(features)
        proposals, rpn_losses = self.proposal_generator(images, features, targets)
        _, roi_losses = self.roi_heads(images, features, proposals, targets)
        return rpn_losses | roi_losses

    @torch.no_grad()
    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict] | list[Instances]:
        """Detects and embeds all persons, or embeds the persons in given boxes.

        Args:
            batched_inputs: one dict per image; ``image`` is needed, ``height``, ``width`` (of the
                original), ``queries`` and ``image_digest`` (key of the cache) are used if present.
            detected_instances: boxes (``pred_boxes``, pixels of the input image) to be embedded
                instead of detecting; they come back with ``reid_feats``. The detection branch does
                not run.
            do_postprocess: whether boxes are scaled to the original image.
        """
        images, features = self.activations(batched_inputs)
        features["reid"] = self.msfrn(features)
        if detected_instances is not None:
            given = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, given)
        else:
            features |= self.detection_maps(features)
            proposals, _ = self.proposal_generator(images, features)
            results, _ = self.roi_heads(images, features, proposals)
        if not do_postprocess:
            return results
        outputs = []
        for x, instances in zip(batched_inputs, results, strict=True):
            h, w = x.get("height", instances.image_size[0]), x.get("width", instances.image_size[1])
            outputs.append({"instances": detector_postprocess(instances, h, w)})
        if detected_instances is None:
            self._add_queries(outputs, batched_inputs, features)
        return outputs

    def _add_queries(
        self, outputs: list[dict], batched_inputs: list[dict], features: dict[str, Tensor]
    ) -> None:
        """Sets ``query_feats`` of the images that have ``queries``; the features serve again."""
        if not any("queries" in x for x in batched_inputs):
            return
        none = Boxes(torch.zeros(0, 4))
        boxes = [
            (x["queries"].pred_boxes if "queries" in x else none).to(self.device)
            for x in batched_inputs
        ]
        feats = self.roi_heads.reid_head.embed(features, boxes)
        for x, output, rows in zip(
            batched_inputs, outputs, feats.split([len(b) for b in boxes]), strict=True
        ):
            if "queries" in x:
                output["query_feats"] = rows


def _check_names(cfg, shapes: dict[str, ShapeSpec]) -> None:
    """Raises ValueError if RPN or RoI heads are to read a map that is not there."""
    for key, names in (
        ("MODEL.RPN.IN_FEATURES", cfg.MODEL.RPN.IN_FEATURES),
        ("MODEL.ROI_HEADS.IN_FEATURES", cfg.MODEL.ROI_HEADS.IN_FEATURES),
    ):
        if len(names) != 1 or names[0] not in shapes:
            raise ValueError(
                f"{key} is {list(names)}; DiffPS needs one map, 'guided' (modulated by DGRPN) or "
                "'det' (as it comes from DetAggregator)."
            )
