# SPDX-License-Identifier: Apache-2.0
"""Detectors in two stages: backbone, proposals, ROI heads.

Shape shorthand: N images, C channels, H x W pixels.

One image of a batch is a dict:
    image: (C, H, W), any dtype, values in [0, 255], channels in the order of `input_format`.
    instances: Instances with `gt_boxes` and `gt_classes`, in training.
    proposals: Instances with `proposal_boxes` and `objectness_logits`, if there is no proposal
        generator.
    height, width: size in pixels to give the results in; by default that of `image`.
"""

import logging

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.layers import move_device_like
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from ..backbone import Backbone, build_backbone
from ..postprocessing import detector_postprocess
from ..proposal_generator import build_proposal_generator
from ..roi_heads import build_roi_heads
from .build import META_ARCH_REGISTRY

__all__ = ["GeneralizedRCNN", "ProposalNetwork"]

_VISUALIZED_BOXES = 20


def _output_size(image_dict: dict, image_size: tuple[int, int]) -> tuple[int, int]:
    return image_dict.get("height", image_size[0]), image_dict.get("width", image_size[1])


class _NormalizedInput(nn.Module):
    """What both models share: pixel statistics and batching."""

    def _register_pixel_stats(self, pixel_mean, pixel_std) -> None:
        # Not in checkpoints: they belong to the config.
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        assert self.pixel_mean.shape == self.pixel_std.shape, (
            f"{len(pixel_mean)} channels in pixel_mean, {len(pixel_std)} in pixel_std"
        )

    @property
    def device(self):
        """Where the model is; inputs are moved there."""
        return self.pixel_mean.device

    def _move_to_current_device(self, x):
        return move_device_like(x, self.pixel_mean)

    def _targets(self, batched_inputs: list[dict], key: str) -> list[Instances] | None:
        """Each image's entry `key` on this device; None if the batch has none."""
        if key not in batched_inputs[0]:
            return None
        return [image_dict[key].to(self.device) for image_dict in batched_inputs]

    def _to_image_list(self, batched_inputs: list[dict[str, torch.Tensor]]) -> ImageList:
        """Move, normalize, pad and batch the images; (N, C, H, W) with the largest H and W."""
        images = []
        for image_dict in batched_inputs:
            image = self._move_to_current_device(image_dict["image"])
            images.append((image - self.pixel_mean) / self.pixel_std)
        return ImageList.from_tensors(
            images,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(_NormalizedInput):
    """Any R-CNN: features of the image, proposals, then a look at each proposal.

    Args:
        backbone: see `Backbone`.
        proposal_generator: see `PROPOSAL_GENERATOR_REGISTRY`, or None: proposals come with the
            batch.
        roi_heads: see `ROIHeads`.
        pixel_mean, pixel_std: per channel, in the units of the images.
        input_format: order of the channels; needed for `vis_period`.
        vis_period: put an image of a training image into the event storage every so many
            iterations; 0 never.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        roi_heads: nn.Module,
        pixel_mean: tuple[float],
        pixel_std: tuple[float],
        input_format: str | None = None,
        vis_period: int = 0,
    ):
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.input_format = input_format
        self.vis_period = vis_period
        if vis_period > 0:
            assert input_format is not None, "vis_period needs to know the input_format"
        self._register_pixel_stats(pixel_mean, pixel_std)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(cfg, shapes),
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def visualize_training(self, batched_inputs, proposals):
        """Put an image of the first image into the event storage.

        Left the ground truth boxes, right the best proposals.

        Args:
            batched_inputs: the batch.
            proposals: per image, with `proposal_boxes`, best first.
        """
        # Only here, so that a model needs neither the data package nor matplotlib.
        from detectron2.data.detection_utils import convert_image_to_rgb
        from detectron2.utils.visualizer import Visualizer

        image_dict, image_proposals = batched_inputs[0], proposals[0]
        image = convert_image_to_rgb(image_dict["image"].permute(1, 2, 0), self.input_format)
        gt = Visualizer(image, None).overlay_instances(boxes=image_dict["instances"].gt_boxes)
        boxes = image_proposals.proposal_boxes[:_VISUALIZED_BOXES].tensor.cpu().numpy()
        predicted = Visualizer(image, None).overlay_instances(boxes=boxes)
        picture = np.concatenate((gt.get_image(), predicted.get_image()), axis=1)
        get_event_storage().put_image(
            "Left: GT bounding boxes;  Right: Predicted proposals", picture.transpose(2, 0, 1)
        )

    def forward(self, batched_inputs: list[dict[str, torch.Tensor]]):
        """Train or infer.

        Args:
            batched_inputs: see the module's docstring.

        Returns:
            In training a dict of scalar losses. Otherwise per image {"instances": Instances} with
            `pred_boxes`, `scores` and `pred_classes`, in the frame of (height, width).
        """
        if self.training:
            return self._training_losses(batched_inputs)
        return self.inference(batched_inputs)

    def _training_losses(self, batched_inputs) -> dict[str, torch.Tensor]:
        images = self.preprocess_image(batched_inputs)
        gt_instances = self._targets(batched_inputs, "instances")
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self._propose(batched_inputs, images, features, gt_instances)
        _, detector_losses = self.roi_heads(images, features, proposals, gt_instances)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return {**detector_losses, **proposal_losses}

    def _propose(self, batched_inputs, images, features, gt_instances):
        """Proposals per image, and losses; the batch's own proposals without a generator."""
        if self.proposal_generator is not None:
            return self.proposal_generator(images, features, gt_instances)
        assert "proposals" in batched_inputs[0], "no proposal generator and no proposals given"
        return [x["proposals"].to(self.device) for x in batched_inputs], {}

    def inference(
        self,
        batched_inputs: list[dict[str, torch.Tensor]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ):
        """Infer, also for boxes that are known already.

        Args:
            batched_inputs: see the module's docstring.
            detected_instances: per image, with `pred_boxes` and `pred_classes` in the frame of
                `image`. Detection is skipped and only the ROI heads'
                `forward_with_given_boxes` runs.
            do_postprocess: scale the results to (height, width).

        Returns:
            As `forward` at inference; the plain Instances, in the frame of `image`, without
            postprocessing.
        """
        assert not self.training, "call eval() before inference()"
        images = self.preprocess_image(batched_inputs)
        feature_maps = self.backbone(images.tensor)
        if detected_instances is not None:
            given = [boxes.to(self.device) for boxes in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(feature_maps, given)
        else:
            proposals, _ = self._propose(batched_inputs, images, feature_maps, None)
            results, _ = self.roi_heads(images, feature_maps, proposals, None)
        if not do_postprocess:
            return results
        return GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)

    def preprocess_image(self, batched_inputs: list[dict[str, torch.Tensor]]) -> ImageList:
        """Normalize the images and pad them to one batch (N, C, H, W)."""
        return self._to_image_list(batched_inputs)

    @staticmethod
    def _postprocess(instances, batched_inputs: list[dict[str, torch.Tensor]], image_sizes):
        """Scale each image's results to the size asked for."""
        return [
            {"instances": detector_postprocess(result, *_output_size(image_dict, image_size))}
            for result, image_dict, image_size in zip(
                instances, batched_inputs, image_sizes, strict=True
            )
        ]


@META_ARCH_REGISTRY.register()
class ProposalNetwork(_NormalizedInput):
    """The first stage alone.

    Args:
        backbone, proposal_generator, pixel_mean, pixel_std: as for `GeneralizedRCNN`.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        pixel_mean: tuple[float],
        pixel_std: tuple[float],
    ):
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self._register_pixel_stats(pixel_mean, pixel_std)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs):
        """Train or infer.

        Args:
            batched_inputs: see the module's docstring.

        Returns:
            In training a dict of scalar losses. Otherwise per image {"proposals": Instances} with
            `proposal_boxes` and `objectness_logits`, in the frame of (height, width).
        """
        images = self._to_image_list(batched_inputs)
        features = self.backbone(images.tensor)
        gt_instances = self._targets(batched_inputs, "instances")
        if gt_instances is None and "targets" in batched_inputs[0]:
            logging.getLogger(__name__).warning(
                "the key 'targets' of an image is deprecated; call it 'instances'"
            )
            gt_instances = self._targets(batched_inputs, "targets")
        proposals, losses = self.proposal_generator(images, features, gt_instances)
        # Losses of a forward in training mode; the proposals are then only intermediate.
        if self.training:
            return losses
        return [
            {"proposals": detector_postprocess(result, *_output_size(image_dict, image_size))}
            for result, image_dict, image_size in zip(
                proposals, batched_inputs, images.image_sizes, strict=True
            )
        ]
