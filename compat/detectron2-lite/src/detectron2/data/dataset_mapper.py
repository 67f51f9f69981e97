# SPDX-License-Identifier: Apache-2.0
"""The default dataset mapper."""

import copy
import logging
from typing import Any

import numpy as np
import torch
from detectron2._lite import NotInLiteError, absence_message
from detectron2.config import configurable

from . import detection_utils as utils
from . import transforms as T


class DatasetMapper:
    """Maps a record to the input of a model. It can also be built from a config.

    A call with a record (Detectron2's "standard dataset dict") reads the image, augments it, and
    returns a copy of the record with

    * ``image``: (C, H, W) tensor in the data type and channel order of the image as read;
    * ``instances``, in training: ``Instances`` with ``gt_boxes``, ``gt_classes`` and, if enabled,
      ``gt_masks`` and ``gt_keypoints``, without crowds and empty boxes;
    * ``sem_seg``, if the record has ``sem_seg_file_name``.

    Args:
        is_train: Whether the mapper is used for training. For testing, annotations are dropped.
        augmentations: Augmentations, applied in order.
        image_format: Format of ``detection_utils.read_image``, for example "BGR".
        use_instance_mask: Whether to return masks.
        use_keypoint: Whether to return keypoints.
        instance_mask_format: "polygon" or "bitmask".
        keypoint_hflip_indices: See ``detection_utils.create_keypoint_hflip_indices``.
        precomputed_proposal_topk: Must be None; precomputed proposals are absent.
        recompute_boxes: Whether to compute boxes from the augmented masks.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ):
        if precomputed_proposal_topk is not None:
            raise NotInLiteError(absence_message("precomputed_proposal_topk of DatasetMapper"))
        assert use_instance_mask or not recompute_boxes, "recompute_boxes needs use_instance_mask"
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.use_keypoint = use_keypoint
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.recompute_boxes = recompute_boxes
        logging.getLogger(__name__).info(
            "[DatasetMapper] Augmentations used in %s: %s",
            "training" if is_train else "inference",
            augmentations,
        )

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict[str, Any]:
        """Returns the arguments of ``__init__``."""
        augmentations = utils.build_augmentation(cfg, is_train)
        recompute_boxes = False
        if cfg.INPUT.CROP.ENABLED and is_train:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
            # the box of a cropped instance is only known from its mask
            recompute_boxes = cfg.MODEL.MASK_ON
        arguments = {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "recompute_boxes": recompute_boxes,
        }
        if cfg.MODEL.KEYPOINT_ON:
            arguments["keypoint_hflip_indices"] = utils.create_keypoint_hflip_indices(
                cfg.DATASETS.TRAIN
            )
        return arguments

    def _transform_annotations(self, dataset_dict, transforms, image_shape) -> None:
        """Replaces ``annotations`` of the record by ``instances``; subclasses may override it."""
        for annotation in dataset_dict["annotations"]:
            if not self.use_instance_mask:
                annotation.pop("segmentation", None)
            if not self.use_keypoint:
                annotation.pop("keypoints", None)
        annotations = [
            utils.transform_instance_annotations(
                annotation,
                transforms,
                image_shape,
                keypoint_hflip_indices=self.keypoint_hflip_indices,
            )
            for annotation in dataset_dict.pop("annotations")
            if annotation.get("iscrowd", 0) == 0
        ]
        instances = utils.annotations_to_instances(
            annotations, image_shape, mask_format=self.instance_mask_format
        )
        if self.recompute_boxes:
            instances.set("gt_boxes", instances.gt_masks.get_bounding_boxes())
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Maps a record, which is not changed."""
        record = copy.deepcopy(dataset_dict)
        image = utils.read_image(record["file_name"], format=self.image_format)
        utils.check_image_size(record, image)
        aug_input = T.AugInput(image)
        if "sem_seg_file_name" in record:
            sem_seg = utils.read_image(record.pop("sem_seg_file_name"), "L")
            aug_input.sem_seg = sem_seg.squeeze(2)
        transforms = self.augmentations(aug_input)
        image_shape = aug_input.image.shape[:2]
        # contiguous, because a view of a flipped image would be copied for every worker
        channels_first = np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        record["image"] = torch.as_tensor(channels_first)
        if aug_input.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype("long"))
        if self.is_train and "annotations" in record:
            self._transform_annotations(record, transforms, image_shape)
        else:
            record.pop("annotations", None)
        return record
