# SPDX-License-Identifier: Apache-2.0
"""Two-stage detectors: backbone, proposal generator, ROI heads.

Shape shorthand: N images, C channels, H x W pixels.

The input of a model is a list of dicts, one per image, with the keys
    image: (C, H, W) tensor of any type, values in [0, 255], channels in the order of the config.
    instances: in training, Instances with `gt_boxes` and `gt_classes`.
    proposals: without a proposal generator, Instances with `proposal_boxes` and
        `objectness_logits`.
    height, width: size of the results in pixels, by default that of `image`.
"""

import torch
from detectron2._lite import NotInLiteError, absence_message, absent
from detectron2.config import configurable
from detectron2.layers import move_device_like
from detectron2.structures import ImageList, Instances
from torch import nn

from ..backbone import Backbone, build_backbone
from ..postprocessing import detector_postprocess
from ..proposal_generator import build_proposal_generator
from ..roi_heads import build_roi_heads
from .build import META_ARCH_REGISTRY

__getattr__ = absent(__name__, "ProposalNetwork")


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(nn.Module):
    """Generalized R-CNN: image features, proposals, and predictions for each proposal.

    Args:
        backbone: Backbone of the image features.
        proposal_generator: See ``PROPOSAL_GENERATOR_REGISTRY``; None if the proposals are inputs.
        roi_heads: See ``ROIHeads``.
        pixel_mean: Mean of each channel, in the units of the images.
        pixel_std: Standard deviation of each channel.
        input_format: Channel order of the images.
        vis_period: Must be 0; visualization is absent.
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
        if vis_period > 0:
            raise NotInLiteError(absence_message(f"cfg.VIS_PERIOD = {vis_period}"))
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.input_format = input_format
        self.vis_period = vis_period
        # not persistent: they belong to the config
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        assert self.pixel_mean.shape == self.pixel_std.shape, (
            f"{len(pixel_mean)} channels in pixel_mean, {len(pixel_std)} in pixel_std"
        )

    @classmethod
    def from_config(cls, cfg):
        """Returns the arguments of ``__init__``."""
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

    @property
    def device(self):
        """Device of the model, to which inputs are moved."""
        return self.pixel_mean.device

    def _move_to_current_device(self, x):
        return move_device_like(x, self.pixel_mean)

    def forward(self, batched_inputs: list[dict[str, torch.Tensor]]):
        """Computes losses in training, otherwise predictions.

        Args:
            batched_inputs: List of dicts; see the docstring of the module.

        Returns:
            In training, a dict of scalar losses. Otherwise, for each image {"instances": Instances}
            with `pred_boxes`, `scores` and `pred_classes` for an image of size (height, width).
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        gt_instances = None
        if "instances" in batched_inputs[0]:
            gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self._propose(batched_inputs, images, features, gt_instances)
        _, detector_losses = self.roi_heads(images, features, proposals, gt_instances)
        return {**detector_losses, **proposal_losses}

    def _propose(self, batched_inputs, images, features, gt_instances):
        """Returns proposals per image, and losses."""
        if self.proposal_generator is not None:
            return self.proposal_generator(images, features, gt_instances)
        assert "proposals" in batched_inputs[0], "without a proposal generator, give proposals"
        return [x["proposals"].to(self.device) for x in batched_inputs], {}

    def inference(
        self,
        batched_inputs: list[dict[str, torch.Tensor]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ):
        """Runs inference, optionally on given boxes.

        Args:
            batched_inputs: List of dicts; see the docstring of the module.
            detected_instances: For each image, Instances with `pred_boxes` and `pred_classes` in
                the frame of `image`. Then only ``forward_with_given_boxes`` of the ROI heads runs.
            do_postprocess: Whether to rescale the results to (height, width).

        Returns:
            The predictions of ``forward``; without postprocessing, a list of Instances in the
            frame of `image`.
        """
        assert not self.training
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self._propose(batched_inputs, images, features, None)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            given = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, given)
        if not do_postprocess:
            return results
        return GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)

    def preprocess_image(self, batched_inputs: list[dict[str, torch.Tensor]]) -> ImageList:
        """Normalizes the images and pads them to one batch (N, C, H, W)."""
        images = [self._move_to_current_device(x["image"]) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(
            images,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    @staticmethod
    def _postprocess(instances, batched_inputs: list[dict[str, torch.Tensor]], image_sizes):
        results = []
        for result, image_dict, size in zip(instances, batched_inputs, image_sizes, strict=True):
            height, width = image_dict.get("height", size[0]), image_dict.get("width", size[1])
            results.append({"instances": detector_postprocess(result, height, width)})
        return results
