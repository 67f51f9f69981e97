# SPDX-License-Identifier: Apache-2.0
"""DiffPS as a Detectron2 meta-architecture.

Shape shorthand in this file:
    B: images. C: channels. D: length of an embedding. q: queries of an image.
Naming: ``det``, ``guided`` and ``reid`` are the maps that the heads read; they are in one dict with
the activations of the frozen backbone.
"""

from collections.abc import Sequence
from functools import partial

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
from fvcore.nn import weight_init
from torch import Tensor, nn

# the imports register the parts that a config names
from diffps.det_aggregator import DetAggregator
from diffps.dgrpn import DGRPN
from diffps.msfrn import MSFRN
from diffps.norm import RowNorm
from diffps.res5 import Res5
from diffps.resnet_activations import ResNetActivations  # noqa: F401
from diffps.roi_heads import DiffPSROIHeads
from person_search.modeling import run_by_size
from person_search.modeling.export import ExportedModel

_INITS = ("v1", "v2", "v2_keep_norm")


@META_ARCH_REGISTRY.register()
class DiffPS(nn.Module):
    """Person search on the frozen activations of a diffusion model.

    Detection and re-ID read different activations through separate trainable parts, so that
    neither receives gradients of the other. An image passes the backbone once, for both its
    detections and its queries.

    In training the model returns a dict of ``loss_*``. In eval mode it returns for every image
    ``instances`` (``pred_boxes`` in pixels of the original image, ``scores``, ``pred_classes``,
    ``reid_feats`` (n, D) of unit length) and, if the input has ``queries``, ``query_feats`` (q, D)
    in their order.

    Args:
        backbone: Frozen backbone with named activations and ``attn``.
        det_aggregator: Computes the detection map.
        det_in_feature: Activation that ``det_aggregator`` reads.
        msfrn: Computes the re-ID map.
        proposal_generator: Modulates the detection map and proposes regions.
        roi_heads: Detects and embeds persons.
        pixel_mean: Mean per channel.
        pixel_std: Standard deviation per channel.
    """

    # The frozen backbone has its own setting, MODEL.DIFFPS.BACKBONE.DTYPE, and is not to be copied.
    low_precision_modules = ()
    float32_modules = ("det_aggregator", "msfrn", "roi_heads")

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
        """Builds the parts of the model."""
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
        for key, names in (
            ("MODEL.RPN.IN_FEATURES", cfg.MODEL.RPN.IN_FEATURES),
            ("MODEL.ROI_HEADS.IN_FEATURES", cfg.MODEL.ROI_HEADS.IN_FEATURES),
        ):
            if len(names) != 1 or names[0] not in shapes:
                raise ValueError(
                    f"{key} is {list(names)}; DiffPS needs one map, 'guided' (modulated by DGRPN) "
                    "or 'det' (the output of DetAggregator)."
                )
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
        """Device of the model."""
        return self.pixel_mean.device

    def load_initial_weights(self) -> None:
        """Reads the weights of ``MODEL.DIFFPS.HEAD.RES5_WEIGHTS`` if no checkpoint was loaded.

        The trainer calls it when training starts; other training loops must call it, too.
        """
        for module in self.modules():
            if isinstance(module, Res5):
                module.load_initial_weights()

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalizes the images and pads them to one size."""
        images = [x["image"].to(self.device).float() for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def activations(self, batched_inputs: list[dict]) -> tuple[ImageList, dict[str, Tensor]]:
        """Returns the images and the activations of the frozen backbone, (B, C, H, W) each."""
        images = self.preprocess_image(batched_inputs)
        keys = [x.get("image_digest") for x in batched_inputs]
        return images, self.backbone(images.tensor, images.image_sizes, keys)

    def detection_maps(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns ``det``, the aggregated map, and ``guided``, the map modulated by attention."""
        # float32, because RoI pooling casts boxes to the dtype of the map, and half is too coarse
        det = self.det_aggregator(features[self.det_in_feature]).float()
        return {"det": det, "guided": self.proposal_generator.guide(det, features.get("attn"))}

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Returns losses in training mode, predictions per image in eval mode.

        Args:
            batched_inputs: Dicts of the mapper with ``image`` and, in training, ``instances`` with
                ``gt_boxes``, ``gt_classes`` and ``gt_pids`` in the frame of the image. Images
                without persons are allowed.
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
            batched_inputs: One dict per image with ``image``, and optionally ``height`` and
                ``width`` of the original, ``queries`` and ``image_digest`` (key of the cache).
            detected_instances: Boxes (``pred_boxes``, pixels of the input image) to embed instead
                of detecting; they are returned with ``reid_feats``. The detection branch does not
                run.
            do_postprocess: Whether to scale boxes to the original image.
        """
        return run_by_size(
            partial(self._infer, do_postprocess),
            batched_inputs,
            detected_instances or [None] * len(batched_inputs),
            size_divisibility=self.backbone.size_divisibility,
        )

    def _infer(
        self, do_postprocess: bool, batched_inputs: list[dict], given: list[Instances | None]
    ) -> list[dict] | list[Instances]:
        """Makes the predictions of images that are padded to the same size."""
        images, features = self.activations(batched_inputs)
        features["reid"] = self.msfrn(features)
        boxes_given = [x.to(self.device) for x in given if x is not None]
        if boxes_given:
            results = self.roi_heads.forward_with_given_boxes(features, boxes_given)
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
        if not boxes_given and any("queries" in x for x in batched_inputs):
            none = Boxes(torch.zeros(0, 4))
            boxes = [
                (x["queries"].pred_boxes if "queries" in x else none).to(self.device)
                for x in batched_inputs
            ]
            feats = self.roi_heads.reid_head.embed(features, boxes)
            feats = feats.split([len(b) for b in boxes])
            for x, output, rows in zip(batched_inputs, outputs, feats, strict=True):
                if "queries" in x:
                    output["query_feats"] = rows
        return outputs

    def export(self, max_side: int, heads_only: bool = False) -> ExportedModel:
        """Exports all parts; see :class:`person_search.modeling.export.Exports`."""
        from diffps.export import export_model  # which imports this module

        return export_model(self, max_side, heads_only)


def initialize(scheme: str, *modules: nn.Module) -> None:
    """Initializes box predictor and embedder in place (``MODEL.DIFFPS.HEAD.INIT``).

    Args:
        scheme: ``v1``: Xavier for linear layers, Kaiming for convolutions, norms unchanged.
            ``v2``, which the release uses on PRW: every weight normal with standard deviation
            0.01, every bias zero, including those of norms. ``v2_keep_norm``: the same without
            norms.
        *modules: Modules to initialize.
    """
    if scheme not in _INITS:
        raise ValueError(f"MODEL.DIFFPS.HEAD.INIT is '{scheme}'; it must be one of {_INITS}.")
    for layer in (layer for module in modules for layer in module.modules()):
        if scheme == "v1":
            if isinstance(layer, nn.Linear):
                weight_init.c2_xavier_fill(layer)
            elif isinstance(layer, nn.Conv2d):
                weight_init.c2_msra_fill(layer)
        elif scheme == "v2" or not isinstance(layer, RowNorm):
            for name, parameter in layer.named_parameters(recurse=False):
                if name == "bias":
                    nn.init.zeros_(parameter)
                else:
                    nn.init.normal_(parameter, std=0.01)
