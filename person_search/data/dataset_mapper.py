# SPDX-License-Identifier: Apache-2.0
"""Turns a data set record into the input of a person search model.

Which kinds of image can be read is told in :mod:`person_search.data.image_io`.

Shape shorthand: C = 3 channels, (H, W) size of the resized image, n boxes, q queries of one image.
"The image" is the file on disk, "the image" what the model gets; only the latter is resized.

An image that cannot be read (``DATALOADER.ON_BAD_IMAGE``):

* ``raise`` ends the run with ``BadImageError``, which names the file.
* ``skip`` logs the file. In training the mapper returns None and Detectron2's loader takes another
  image. In testing every image must come out exactly once, since another image in its place would
  be counted twice: the model gets a black image, marked ``"bad_image": True``. The evaluator must
  drop what the model detects in it, that is count its people as not found; a query in it is
  searched with the embedding of the black image, and so fails.
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
from person_search.data.image_io import READ_ERRORS, plain_reason, read_image_file
from person_search.schema import NO_QUERY_ID, PERSON_CATEGORY_ID

logger = logging.getLogger(__name__)

MAPPER_REGISTRY = Registry("MAPPER")
MAPPER_REGISTRY.__doc__ = """
Mappers from a data set record to model input, chosen by ``DATALOADER.MAPPER``.

Called as ``cls(cfg, is_train)``; the object is then called with one record and returns the model's
input for it, or None in training to have another image taken.
"""

_MAX_BAD_IN_A_ROW = 10


class BadImageError(RuntimeError):
    """An image that cannot be read."""


@MAPPER_REGISTRY.register()
class PersonSearchMapper:
    """The mapper of both methods; see the module for what becomes of unreadable images.

    A subclass that needs more per-person targets overrides ``instances_from_annotations``.
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
        """
        Args:
            is_train: whether to give ``instances``, or the parts that testing needs.
            augmentations: applied in this order to image and boxes.
            image_format: channel order, e.g. ``BGR``; see Detectron2's ``read_image``.
            on_bad_image: ``raise`` or ``skip``.
            embed_gt_boxes: in testing, let the true boxes follow the queries, with
                ``NO_QUERY_ID``, so that the model embeds them in the same pass.
        """
        if on_bad_image not in ("raise", "skip"):
            raise ValueError(
                f"DATALOADER.ON_BAD_IMAGE is {on_bad_image!r}; allowed: 'raise', 'skip'"
            )
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.on_bad_image = on_bad_image
        self.embed_gt_boxes = embed_gt_boxes
        self._warned_outside: set[str] = set()
        self._bad_in_a_row = 0

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
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
    def check_training_files(cls, cfg: CfgNode, options: Sequence[str] = ()) -> None:
        """Raises an error if a file is missing that training needs beside the data. Override point.

        Called before the data are read and the model is built.

        Args:
            options: with which a program makes this config, e.g. ``--config-file x.yaml SEED 1``,
                for commands in this message and in later ones.
        """

    def __call__(self, record: dict) -> dict | None:
        """Maps one record.

        Returns:
            In training: the record without ``annotations``, with ``image`` (C, H, W) uint8 and
            ``instances`` (``gt_boxes``, ``gt_classes``, ``gt_pids``) in its frame; or None for a
            skipped image. In testing: ``image``, ``height``, ``width`` (of the image),
            ``image_id``, ``file_name``, ``cam_id`` and ``queries``, an ``Instances``
            (``pred_boxes``, ``pred_classes``, ``query_ids``) in the frame of the image; with
            ``embed_gt_boxes``, the true boxes in the order of the annotations come behind.
        """
        record = copy.deepcopy(record)  # the loader hands out the same record every epoch
        picture = self._read(record)
        if picture is None and self.is_train:
            return None
        record["bad_image"] = picture is None
        if picture is None:
            picture = _black_image(record)
        record["height"], record["width"] = picture.shape[:2]

        aug_input = T.AugInput(picture)
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
        """Makes the training targets of one image. Override point.

        Args:
            record: the record, with ``image`` set.
            annotations: n annotations whose ``bbox`` is XYXY in the frame of the image. ``index``
                is the place in the record's own list, of which those outside are missing here.
            transforms: what was done to the image, e.g. to see whether it was flipped.
            image_size: (H, W).

        Returns:
            Instances of n rows, in order: ``gt_boxes``, ``gt_classes`` (0), ``gt_pids`` (int64).
            Boxes that a crop has emptied are still there; the caller drops those rows.
        """
        instances = Instances(image_size)
        boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
        instances.gt_boxes = Boxes(torch.from_numpy(boxes))
        instances.gt_classes = torch.full((len(boxes),), PERSON_CATEGORY_ID, dtype=torch.int64)
        pids = [annotation["person_id"] for annotation in annotations]
        instances.gt_pids = torch.tensor(pids, dtype=torch.int64)
        return instances

    def _read(self, record: dict) -> np.ndarray | None:
        """Returns the image (height, width, C) uint8, or None for one that is to be skipped."""
        name = record["file_name"]
        try:
            picture = read_image_file(name, self.image_format)
        except READ_ERRORS as e:
            if self.on_bad_image == "raise":
                raise BadImageError(
                    f"cannot read the image {name}: {plain_reason(e)}. Copy the file again, or set "
                    "DATALOADER.ON_BAD_IMAGE to 'skip' to go on without it."
                ) from e
            self._count_bad(name, e)
            return None
        self._bad_in_a_row = 0
        height, width = picture.shape[:2]
        recorded = record["height"], record["width"]
        # (0, 0): the reader of the data set could not tell
        if recorded not in ((height, width), (0, 0)):
            raise ValueError(
                f"the image {name} is {height} x {width} (height x width), but its record says "
                f"{recorded[0]} x {recorded[1]}: the file was replaced after the data set was "
                "read, or is not the one that the boxes were drawn in"
            )
        return picture

    def _count_bad(self, name: str, error: Exception) -> None:
        """Logs a skipped image; gives up where nothing can be read any more."""
        logger.warning(f"skipping the image {name}, which cannot be read: {plain_reason(error)}")
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= _MAX_BAD_IN_A_ROW:
            raise BadImageError(
                f"{_MAX_BAD_IN_A_ROW} images in a row cannot be read, the last one {name}: "
                "is the disk with the data set still there?"
            ) from error

    def _clip(self, box: dict, record: dict) -> np.ndarray | None:
        """Returns the (4,) XYXY part of a box inside the image, or None if there is none."""
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
                    f"query {query['query_id']} has its box {query['bbox']} entirely outside the "
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
    """Returns (4,) XYXY of the pixel next to a box outside the image: something to embed."""
    corner = BoxMode.convert(box["bbox"], box["bbox_mode"], BoxMode.XYXY_ABS)[:2]
    corner = np.clip(corner, 0, [record["width"] - 1, record["height"] - 1])
    return np.concatenate([corner, corner + 1])


def _black_image(record: dict) -> np.ndarray:
    """Returns the stand-in for an image in testing: of its size, or around its boxes."""
    height, width = record["height"], record["width"]
    if not height:
        corners = [
            BoxMode.convert(box["bbox"], box["bbox_mode"], BoxMode.XYXY_ABS)[2:]
            for box in [*record["annotations"], *record["queries"]]
        ]
        width, height = (max(math.ceil(value), 64) for value in np.max([[0, 0], *corners], axis=0))
    return np.zeros((height, width, 3), np.uint8)


def build_mapper(cfg: CfgNode, is_train: bool) -> PersonSearchMapper:
    """Builds the mapper that ``cfg.DATALOADER.MAPPER`` names."""
    return _mapper_class(cfg)(cfg, is_train)


def check_training_files(cfg: CfgNode, options: Sequence[str] = ()) -> None:
    """Lets the mapper of a config say what its training lacks, before anything else is done.

    See :meth:`PersonSearchMapper.check_training_files`, which other mappers may do without.
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
