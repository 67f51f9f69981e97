# SPDX-License-Identifier: Apache-2.0
"""Loading and registration of data sets in COCO's JSON format."""

import contextlib
import io
import logging
import os
from functools import partial
from typing import Any

import pycocotools.mask as mask_util
from detectron2._lite import absent
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog

__getattr__ = absent(__name__, "convert_to_coco_dict", "convert_to_coco_json", "load_sem_seg")

logger = logging.getLogger(__name__)


def load_coco_json(json_file, image_root, dataset_name=None, extra_annotation_keys=None):
    """Loads instance annotations in COCO's format.

    Args:
        json_file: Path of the annotation file.
        image_root: Folder to which the file names of the images are relative.
        dataset_name: Name of the data set, or None. With a name, category ids are mapped to
            0, 1, ..., and the metadata get ``thing_classes`` and
            ``thing_dataset_id_to_contiguous_id``.
        extra_annotation_keys: Keys of annotations to keep in addition to ``iscrowd``, ``bbox``,
            ``keypoints``, ``category_id`` and ``segmentation``.

    Returns:
        List of records, one per image, in the order of the image ids.
    """
    from pycocotools.coco import COCO

    json_file = PathManager.get_local_path(json_file)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco = COCO(json_file)

    contiguous_id = None
    if dataset_name is not None:
        contiguous_id = _set_category_metadata(coco, dataset_name)

    image_ids = sorted(coco.imgs.keys())
    annotations = [coco.imgToAnns[image_id] for image_id in image_ids]
    if "minival" not in json_file:  # the minival files of 2014 are known to repeat ids
        annotation_ids = [a["id"] for of_image in annotations for a in of_image]
        assert len(set(annotation_ids)) == len(annotation_ids), (
            f"Annotation ids in '{json_file}' are not unique!"
        )
    logger.info("Loaded %d images in COCO format from %s", len(image_ids), json_file)

    keys = ["iscrowd", "bbox", "keypoints", "category_id", *(extra_annotation_keys or [])]
    records = []
    num_dropped = 0
    for image_id, annotations_of_image in zip(image_ids, annotations, strict=True):
        image = coco.imgs[image_id]
        objects = []
        for annotation in annotations_of_image:
            assert annotation["image_id"] == image_id, json_file
            assert annotation.get("ignore", 0) == 0, (
                f'"ignore" in COCO json file is not supported ({json_file})'
            )
            converted = _convert_annotation(annotation, keys, contiguous_id)
            if converted is None:
                num_dropped += 1
            else:
                objects.append(converted)
        records.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image_id,
                "annotations": objects,
            }
        )
    if num_dropped > 0:
        logger.warning(
            "Removed %d instances of %s without a valid polygon; a polygon has at least 3 points.",
            num_dropped,
            json_file,
        )
    return records


def _set_category_metadata(coco, dataset_name: str) -> dict[int, int]:
    """Stores the categories of a file in the metadata; returns the mapping from id to index."""
    metadata = MetadataCatalog.get(dataset_name)
    ids = sorted(coco.getCatIds())
    categories = sorted(coco.loadCats(ids), key=lambda category: category["id"])
    metadata.thing_classes = [category["name"] for category in categories]
    if not (min(ids) == 1 and max(ids) == len(ids)) and "coco" not in dataset_name:
        logger.warning(
            "The category ids of %s are not 1 to %d; they are mapped to contiguous ids.",
            dataset_name,
            len(ids),
        )
    mapping = {category_id: index for index, category_id in enumerate(ids)}
    metadata.thing_dataset_id_to_contiguous_id = mapping
    return mapping


def _convert_annotation(
    annotation: dict, keys: list[str], contiguous_id: dict[int, int] | None
) -> dict[str, Any] | None:
    """Converts an annotation to the format of records; None if all its polygons are invalid."""
    converted = {key: annotation[key] for key in keys if key in annotation}
    if len(converted.get("bbox", (0,))) == 0:
        raise ValueError(
            f"an annotation of image {annotation['image_id']} has an empty 'bbox'. "
            "A box in COCO's format has four numbers: correct the file."
        )
    segmentation = annotation.get("segmentation")
    if segmentation:
        if isinstance(segmentation, dict):
            if isinstance(segmentation["counts"], list):
                # uncompressed run-length encoding
                segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        else:
            segmentation = [p for p in segmentation if len(p) % 2 == 0 and len(p) >= 6]
            if len(segmentation) == 0:
                return None
        converted["segmentation"] = segmentation

    keypoints = converted.get("keypoints")
    if keypoints:
        # from indices of pixels to the coordinates of their centers
        converted["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(keypoints)]

    converted["bbox_mode"] = BoxMode.XYWH_ABS
    if contiguous_id is not None:
        category_id = converted["category_id"]
        try:
            converted["category_id"] = contiguous_id[category_id]
        except KeyError as e:
            raise KeyError(
                f"Encountered category_id={category_id} but this id does not exist in "
                "'categories' of the json file."
            ) from e
    return converted


def register_coco_instances(name, metadata, json_file, image_root):
    """Registers a data set in COCO's format.

    Args:
        name: Name of the data set.
        metadata: Dict of additional metadata.
        json_file: Path of the annotation file.
        image_root: Folder of the images.
    """
    for path in (json_file, image_root):
        assert isinstance(path, (str, os.PathLike)), f"data set '{name}': {path!r} is not a path"
    DatasetCatalog.register(name, partial(load_coco_json, json_file, image_root, name))
    facts = {"json_file": json_file, "image_root": image_root, "evaluator_type": "coco"}
    MetadataCatalog.get(name).set(**facts, **metadata)
