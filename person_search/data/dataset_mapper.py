# SPDX-License-Identifier: Apache-2.0
"""Maps a data set record to the input of a person search model.

:mod:`person_search.data.image_io` lists the supported kinds of images.

Shape shorthand: C = 3 channels, (H, W) size of the transformed image, n boxes, q queries per image.
Boxes of a record are in the frame of the image file, boxes of the output in that of the transformed
image.

``DATALOADER.ON_BAD_IMAGE`` decides about unreadable images:

* ``raise`` ends the run with :class:`BadImageError`, which names the file.
* ``skip`` logs the file. In training, the mapper returns None and the loader takes another image.
  In testing, every image must be evaluated exactly once, so the model receives a black image marked
  ``"bad_image": True``. The evaluator drops all detections in it (its persons count as missed), and
  a query in it is searched with the embedding of the black image.
"""

import copy
import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from fvcore.common.registry import Registry

from person_search.config.defaults import embeds_gt_boxes
from person_search.data.image_io import RecordImageReader
from person_search.schema import NO_QUERY_ID, PERSON_CATEGORY_ID

logger = logging.getLogger(__name__)

MAPPER_REGISTRY = Registry("MAPPER")
MAPPER_REGISTRY.__doc__ = """
Registry of mappers from a data set record to model input, selected by ``DATALOADER.MAPPER``.

A mapper is built as ``cls(cfg, is_train)`` and called with one record. It returns the input of the
model, or None in training to have another image taken.
"""


@MAPPER_REGISTRY.register()
class PersonSearchMapper:
    """Default mapper of both methods; see the module docstring for unreadable images.

    A subclass that needs more per-person targets overrides :meth:`instances_from_annotations`.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        on_bad_image: str = "raise",
        embed_gt_boxes: bool = False,
    ):
        """Initializes the mapper.

        Args:
            is_train: Produces ``instances`` if true, or the entries needed for testing.
            augmentations: Transforms applied in this order to image and boxes.
            image_format: Channel order, for example ``BGR``; see Detectron2's ``read_image``.
            on_bad_image: ``raise`` or ``skip``.
            embed_gt_boxes: In testing, appends the ground truth boxes to the queries with
                ``NO_QUERY_ID``, so that the model embeds them in the same pass.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.read_image = RecordImageReader(image_format, on_bad_image)
        self.embed_gt_boxes = embed_gt_boxes
        self._warned_outside: set[str] = set()

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """Reads ``cfg.INPUT``, ``cfg.DATALOADER`` and ``cfg.TEST.PERSON_SEARCH``."""
        augmentations = utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "on_bad_image": cfg.DATALOADER.ON_BAD_IMAGE,
            "embed_gt_boxes": not is_train and embeds_gt_boxes(cfg),
        }

    @classmethod
    def largest_training_image(cls, cfg: CfgNode) -> tuple[int, int, int]:
        """Returns the largest height and width in training, and bytes per value. Override point."""
        short, long = max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
        return short, max(short, long), 1

    @classmethod
    def check_training_files(cls, cfg: CfgNode, options: Sequence[str] = ()) -> None:
        """Checks for files that training needs besides the data set. Override point.

        Called before the data set is read and the model is built; raises an error if a file is
        missing.

        Args:
            cfg: Config of the training.
            options: Command-line options that produce this config, for example
                ``--config-file x.yaml SEED 1``; error messages quote them in commands.
        """

    def __call__(self, record: dict) -> dict | None:
        """Maps one record.

        Args:
            record: Record of the data set; not modified.

        Returns:
            In training, the record without ``annotations`` and with ``image`` (C, H, W) uint8 and
            ``instances`` (``gt_boxes``, ``gt_classes``, ``gt_pids``) in its frame, or None for a
            skipped image. In testing, ``image``, ``height``, ``width`` (of the image file),
            ``image_id``, ``file_name``, ``cam_id`` and ``queries``, an ``Instances``
            (``pred_boxes``, ``pred_classes``, ``query_ids``) in the frame of the transformed image.
            With ``embed_gt_boxes``, the ground truth boxes follow in the order of the annotations.
        """
        record = copy.deepcopy(record)  # the loader passes the same record every epoch
        pixels = self.read_image(record)
        if pixels is None and self.is_train:
            return None
        record["bad_image"] = pixels is None
        if pixels is None:
            pixels = _black_image(record)
        record["height"], record["width"] = pixels.shape[:2]

        aug_input = T.AugInput(pixels)
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.is_train:
            return self._finish_train(record, transforms, image.shape[:2])
        return self._finish_test(record, transforms, image.shape[:2])

    def instances_from_annotations(
        self,
        record: dict,
        annotations: list[dict],
        transforms: T.TransformList,
        image_size: tuple[int, int],
    ) -> Instances:
        """Creates the training targets of one image. Override point.

        Args:
            record: The record, with ``image`` set.
            annotations: n annotations with ``bbox`` in XYXY in the frame of the transformed image.
                ``index`` is the position in the record's list, which also has the boxes outside the
                image.
            transforms: Transforms applied to the image, for example to see if it was flipped.
            image_size: (H, W).

        Returns:
            Instances with n rows in order: ``gt_boxes``, ``gt_classes`` (0), ``gt_pids`` (int64).
            Boxes emptied by a crop are included; the caller drops these rows.
        """
        instances = Instances(image_size)
        boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
        instances.gt_boxes = Boxes(torch.from_numpy(boxes))
        instances.gt_classes = torch.full((len(boxes),), PERSON_CATEGORY_ID, dtype=torch.int64)
        pids = [annotation["person_id"] for annotation in annotations]
        instances.gt_pids = torch.tensor(pids, dtype=torch.int64)
        return instances

    def _clip(self, box: dict, record: dict) -> np.ndarray | None:
        """Returns a (4,) XYXY box clipped to the image; None if nothing remains."""
        xyxy = np.array(BoxMode.convert(box["bbox"], box["bbox_mode"], BoxMode.XYXY_ABS))
        height, width = record["height"], record["width"]
        xyxy = np.clip(xyxy, 0, [width, height, width, height])
        return xyxy if (xyxy[2:] > xyxy[:2]).all() else None

    def _finish_train(
        self, record: dict, transforms: T.TransformList, image_size: tuple[int, int]
    ) -> dict:
        annotations = []
        for index, annotation in enumerate(record.pop("annotations")):
            box = self._clip(annotation, record)
            if box is None:
                self._warn_outside(record, annotation["bbox"])
                continue
            annotation |= {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "index": index}
            annotations.append(
                utils.transform_instance_annotations(annotation, transforms, image_size)
            )
        record.pop("queries", None)
        record.pop("bad_image")
        instances = self.instances_from_annotations(record, annotations, transforms, image_size)
        record["instances"] = utils.filter_empty_instances(instances)
        return record

    def _warn_outside(self, record: dict, box: list[float]) -> None:
        if record["file_name"] not in self._warned_outside:
            self._warned_outside.add(record["file_name"])
            logger.warning(
                f"dropping a box with no area inside the image {record['file_name']}: {box} "
                f"(XYXY), image {record['height']} x {record['width']} (height x width)"
            )

    def _finish_test(
        self, record: dict, transforms: T.TransformList, image_size: tuple[int, int]
    ) -> dict:
        boxes = []
        for query in record["queries"]:
            box = self._clip(query, record)
            if box is None:
                raise ValueError(
                    f"query {query['query_id']}: the box {query['bbox']} lies entirely outside the "
                    f"image {record['file_name']} of {record['height']} x {record['width']} "
                    "(height x width): the annotation belongs to another image or is wrong"
                )
            boxes.append(box)
        ids = [query["query_id"] for query in record["queries"]]
        if self.embed_gt_boxes:
            for annotation in record["annotations"]:
                box = self._clip(annotation, record)
                boxes.append(_nearest_pixel(annotation, record) if box is None else box)
                ids.append(NO_QUERY_ID)
        moved = transforms.apply_box(np.array(boxes, np.float64).reshape(-1, 4))
        queries = Instances(image_size)
        queries.pred_boxes = Boxes(torch.from_numpy(moved.astype(np.float32)))
        queries.pred_boxes.clip(image_size)
        queries.pred_classes = torch.full((len(boxes),), PERSON_CATEGORY_ID, dtype=torch.int64)
        queries.query_ids = torch.tensor(ids, dtype=torch.int64)
        kept = ("image", "height", "width", "image_id", "file_name", "cam_id")
        output = {key: record[key] for key in kept}
        if record["bad_image"]:
            output["bad_image"] = True
        return {**output, "queries": queries}


def _nearest_pixel(box: dict, record: dict) -> np.ndarray:
    """Returns the (4,) XYXY pixel of the image that is nearest to a box outside of it."""
    corner = BoxMode.convert(box["bbox"], box["bbox_mode"], BoxMode.XYXY_ABS)[:2]
    corner = np.clip(corner, 0, [record["width"] - 1, record["height"] - 1])
    return np.concatenate([corner, corner + 1])


def _black_image(record: dict) -> np.ndarray:
    """Returns a black image of the recorded size, or large enough for all boxes."""
    height, width = record["height"], record["width"]
    if not height:
        corners = [
            BoxMode.convert(box["bbox"], box["bbox_mode"], BoxMode.XYXY_ABS)[2:]
            for box in [*record["annotations"], *record["queries"]]
        ]
        width, height = (max(math.ceil(value), 64) for value in np.max([[0, 0], *corners], axis=0))
    return np.zeros((height, width, 3), np.uint8)


def build_mapper(cfg: CfgNode, is_train: bool) -> PersonSearchMapper:
    """Builds the mapper selected by ``cfg.DATALOADER.MAPPER``."""
    return _mapper_class(cfg)(cfg, is_train)


def check_training_files(cfg: CfgNode, options: Sequence[str] = ()) -> None:
    """Calls :meth:`PersonSearchMapper.check_training_files`, which other mappers may lack.

    Args:
        cfg: Config of the training.
        options: See :meth:`PersonSearchMapper.check_training_files`.
    """
    check = getattr(_mapper_class(cfg), "check_training_files", None)
    if check is not None:
        check(cfg, options)


def _mapper_class(cfg: CfgNode) -> type[PersonSearchMapper]:
    name = cfg.DATALOADER.MAPPER
    if name not in MAPPER_REGISTRY:
        known = sorted(key for key, _ in MAPPER_REGISTRY)
        raise ValueError(f"DATALOADER.MAPPER is {name!r}; allowed: {known}")
    return MAPPER_REGISTRY.get(name)
