# SPDX-License-Identifier: Apache-2.0
"""From a record of a data set to the input of a model."""

import copy
import logging
from typing import Any

import numpy as np
import torch
from detectron2.config import configurable

from . import detection_utils as utils
from . import transforms as T

__all__ = ["DatasetMapper"]


class DatasetMapper:
    """Reads the image of a record, augments it, and turns the annotations into tensors.

    Called with a record (see Detectron2's "standard dataset dict"), it returns a copy with

    * ``image``: (C, H, W) tensor, in the number type and channel order of the image as read;
    * ``instances``, in training: ``Instances`` with ``gt_boxes``, ``gt_classes`` and, if asked
      for, ``gt_masks`` and ``gt_keypoints``, without crowds and empty boxes;
    * ``proposals`` or ``sem_seg``, where the record has them.
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
        """Can also be called with a config.

        Args:
            is_train: for training, or for testing, where annotations are dropped.
            augmentations: applied in this order.
            image_format: as ``detection_utils.read_image`` takes it, for example "BGR".
            use_instance_mask: return masks.
            use_keypoint: return keypoints.
            instance_mask_format: "polygon" or "bitmask".
            keypoint_hflip_indices: see ``detection_utils.create_keypoint_hflip_indices``.
            precomputed_proposal_topk: if given, return that many of the record's proposals.
            recompute_boxes: take boxes from the augmented masks.
        """
        assert use_instance_mask or not recompute_boxes, (
            "recompute_boxes takes boxes from masks, so it needs use_instance_mask"
        )
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.use_keypoint = use_keypoint
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.proposal_topk = precomputed_proposal_topk
        self.recompute_boxes = recompute_boxes
        logging.getLogger(__name__).info(
            "[DatasetMapper] Augmentations used in %s: %s",
            "training" if is_train else "inference",
            augmentations,
        )

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict[str, Any]:
        augmentations = utils.build_augmentation(cfg, is_train)
        recompute_boxes = False
        if cfg.INPUT.CROP.ENABLED and is_train:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
            # cropping cuts objects, of which only the mask tells what is left
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
        if cfg.MODEL.LOAD_PROPOSALS:
            split = "TRAIN" if is_train else "TEST"
            arguments["precomputed_proposal_topk"] = cfg.DATASETS[
                f"PRECOMPUTED_PROPOSAL_TOPK_{split}"
            ]
        return arguments

    def _transform_annotations(self, dataset_dict, transforms, image_shape) -> None:
        """Replaces ``annotations`` of the record by ``instances``; can be overridden."""
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
        """Maps one record; the record itself stays as it is."""
        record = copy.deepcopy(dataset_dict)
        picture = self._read(record)
        transforms = self.augmentations(picture)
        image_shape = picture.image.shape[:2]
        channels_first = picture.image.transpose(2, 0, 1)
        # Contiguous, because a tensor of a flipped view would be copied for every worker.
        record["image"] = torch.as_tensor(np.ascontiguousarray(channels_first))
        if picture.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(picture.sem_seg.astype("long"))

        top_k = self.proposal_topk
        if top_k is not None:
            utils.transform_proposals(record, image_shape, transforms, proposal_topk=top_k)
        if self.is_train and "annotations" in record:
            self._transform_annotations(record, transforms, image_shape)
        else:
            record.pop("annotations", None)
        return record

    def _read(self, record: dict[str, Any]) -> T.AugInput:
        """Reads the image, and the semantic segmentation if the record names one."""
        image = utils.read_image(record["file_name"], format=self.image_format)
        utils.check_image_size(record, image)
        sem_seg_file = record.pop("sem_seg_file_name", None)
        if sem_seg_file is None:
            return T.AugInput(image)
        return T.AugInput(image, sem_seg=utils.read_image(sem_seg_file, "L").squeeze(2))
