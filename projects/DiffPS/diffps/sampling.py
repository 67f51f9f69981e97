# SPDX-License-Identifier: Apache-2.0
"""Selects the RoIs of an image that train a head, and their targets."""

from collections.abc import Sequence

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor

from person_search.schema import PERSON_CATEGORY_ID, UNLABELED_PID

BACKGROUND = PERSON_CATEGORY_ID + 1
_MODES = ("balanced", "fraction")


class RoISampler:
    """Matches boxes with the ground truth of their image and samples persons and background.

    ``balanced`` takes as many background boxes as persons, at most half of ``batch_size`` each, so
    an image with few boxes on persons yields few in total. ``fraction`` is Detectron2's rule:
    background fills the rest of the batch. In an image without one kind, for example without
    persons, only the other is taken, up to half of ``batch_size`` or all of it.

    Args:
        pos_iou: Minimum IoU of a person.
        neg_iou: IoU below which a box is background; boxes between the two are not used.
        batch_size: RoIs per image.
        positive_fraction: Maximum share of persons; 1/2 in ``balanced``.
        mode: ``balanced`` or ``fraction``.
        name: Prefix of the logged counts.
    """

    def __init__(
        self,
        pos_iou: float,
        neg_iou: float,
        batch_size: int,
        positive_fraction: float = 0.5,
        mode: str = "balanced",
        name: str = "roi_head",
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"MODEL.DIFFPS.HEAD.SAMPLER is '{mode}'; it must be one of {_MODES}.")
        if not 0 < neg_iou <= pos_iou <= 1:
            raise ValueError(
                f"RoIs are background below {neg_iou} and persons from {pos_iou} on: IoUs must be "
                "in (0, 1], the first not above the second (MODEL.ROI_HEADS.IOU_THRESHOLDS; for "
                "re-ID MODEL.DIFFPS.REID.NEG_IOU, POS_IOU)."
            )
        self.matcher = Matcher([neg_iou, pos_iou], [0, -1, 1])
        self.batch_size, self.mode, self.name = batch_size, mode, name
        self.max_positive = int(batch_size * positive_fraction)

    @torch.no_grad()
    def __call__(
        self, boxes: Sequence[Boxes], targets: Sequence[Instances], keep_background: bool = True
    ) -> list[Instances]:
        """Samples the RoIs of every image.

        Args:
            boxes: Candidates of each image, in pixels.
            targets: Ground truth of each image with ``gt_boxes`` and ``gt_pids``. These boxes are
                RoIs only if they are among ``boxes``.
            keep_background: Whether to keep background RoIs after sampling.

        Returns:
            Instances of each image, persons first: ``proposal_boxes``, ``gt_classes`` (0 or
            ``BACKGROUND``), ``gt_boxes`` and ``gt_pids`` of the matched person. For background
            these are the box itself and ``UNLABELED_PID``.
        """
        sampled = []
        for candidates, target in zip(boxes, targets, strict=True):
            matches, labels = self.matcher(pairwise_iou(target.gt_boxes, candidates))
            positive, negative = self._draw(labels)
            rows = torch.cat([positive, negative]) if keep_background else positive
            result = Instances(target.image_size, proposal_boxes=candidates[rows])
            is_person = torch.arange(len(rows), device=rows.device) < len(positive)
            result.gt_classes = torch.where(is_person, PERSON_CATEGORY_ID, BACKGROUND)
            gt_boxes = candidates.tensor[rows].clone()
            gt_pids = torch.full_like(rows, UNLABELED_PID)
            truth = matches[positive]
            gt_boxes[: len(positive)] = target.gt_boxes.tensor[truth]
            gt_pids[: len(positive)] = target.gt_pids[truth]
            result.gt_boxes, result.gt_pids = Boxes(gt_boxes), gt_pids
            sampled.append(result)
        self._log(sampled)
        return sampled

    def _draw(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Draws rows of persons and background in random order; labels (R,) are 1, 0 and -1."""
        positive, negative = ((labels == value).nonzero().flatten() for value in (1, 0))
        num_positive = min(len(positive), self.max_positive)
        num_negative = min(len(negative), self.batch_size - num_positive)
        if self.mode == "balanced":
            num_negative = min(num_negative, self.max_positive)
            if num_positive and num_negative:
                num_positive = num_negative = min(num_positive, num_negative)
        return tuple(
            rows[torch.randperm(len(rows), device=rows.device)[:count]]
            for rows, count in ((positive, num_positive), (negative, num_negative))
        )

    def _log(self, sampled: list[Instances]) -> None:
        counts = [(x.gt_classes == PERSON_CATEGORY_ID).sum().item() for x in sampled]
        total = sum(len(x) for x in sampled)
        storage, images = get_event_storage(), max(len(sampled), 1)
        storage.put_scalar(f"{self.name}/num_fg_samples", sum(counts) / images)
        storage.put_scalar(f"{self.name}/num_bg_samples", (total - sum(counts)) / images)
