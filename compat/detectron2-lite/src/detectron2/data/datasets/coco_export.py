# SPDX-License-Identifier: Apache-2.0
"""Writing any registered data set in COCO's JSON format, so that COCO's tools evaluate it."""

import datetime
import json
import logging
import os
import shutil

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import Boxes, BoxMode, PolygonMasks, RotatedBoxes
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import file_lock

from ..catalog import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)


def convert_to_coco_dict(dataset_name):
    """Returns a registered data set of instances as a dict in COCO's format.

    Categories get back the ids of ``thing_dataset_id_to_contiguous_id`` where the metadata has it.
    """
    records = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    original_id = {}
    if hasattr(metadata, "thing_dataset_id_to_contiguous_id"):
        contiguous = metadata.thing_dataset_id_to_contiguous_id
        original_id = {index: category_id for category_id, index in contiguous.items()}

    logger.info("Converting dataset '%s' of %d images to COCO format", dataset_name, len(records))
    images, annotations = [], []
    for position, record in enumerate(records):
        image_id = record.get("image_id", position)
        images.append(
            {
                "id": image_id,
                "width": int(record["width"]),
                "height": int(record["height"]),
                "file_name": str(record["file_name"]),
            }
        )
        for annotation in record.get("annotations", []):
            converted = _convert_annotation(annotation)
            category_id = annotation["category_id"]
            converted.update(
                id=len(annotations) + 1,
                image_id=image_id,
                iscrowd=int(annotation.get("iscrowd", 0)),
                category_id=int(original_id.get(category_id, category_id)),
            )
            annotations.append(converted)
    logger.info("Conversion finished, #images: %d, #annotations: %d", len(images), len(annotations))

    categories = [
        {"id": original_id.get(index, index), "name": name}
        for index, name in enumerate(metadata.thing_classes)
    ]
    coco_dict = {
        "info": {
            "date_created": str(datetime.datetime.now()),
            "description": "Automatically generated COCO json file for Detectron2.",
        },
        "images": images,
        "categories": categories,
        "licenses": None,
    }
    if annotations:
        coco_dict["annotations"] = annotations
    return coco_dict


def _convert_annotation(annotation: dict) -> dict:
    """Returns box, area, keypoints and segmentation of an annotation in COCO's form."""
    box = annotation["bbox"]
    if isinstance(box, np.ndarray):
        if box.ndim != 1:
            raise ValueError(f"bbox has to be 1-dimensional. Got shape={box.shape}.")
        box = box.tolist()
    if len(box) not in (4, 5):
        raise ValueError(f"bbox has to has length 4 or 5. Got {box}.")
    from_mode = annotation["bbox_mode"]
    to_mode = BoxMode.XYWH_ABS if len(box) == 4 else BoxMode.XYWHA_ABS
    box = BoxMode.convert(box, from_mode, to_mode)

    segmentation = annotation.get("segmentation")
    if "segmentation" in annotation:
        if isinstance(segmentation, list):
            area = PolygonMasks([segmentation]).area()[0].item()
        elif isinstance(segmentation, dict):
            area = mask_util.area(segmentation).item()
        else:
            raise TypeError(f"cannot write a segmentation of type {type(segmentation)}")
    elif to_mode == BoxMode.XYWH_ABS:
        corners = BoxMode.convert(box, to_mode, BoxMode.XYXY_ABS)
        area = Boxes([corners]).area()[0].item()
    else:
        area = RotatedBoxes([box]).area()[0].item()

    converted = {"bbox": [round(float(value), 3) for value in box], "area": float(area)}
    if "keypoints" in annotation:
        keypoints = list(annotation["keypoints"])
        for i, value in enumerate(keypoints):
            if i % 3 != 2:
                keypoints[i] = value - 0.5  # the inverse of what the loader does
        converted["keypoints"] = keypoints
        if "num_keypoints" in annotation:
            converted["num_keypoints"] = annotation["num_keypoints"]
        else:
            converted["num_keypoints"] = sum(v > 0 for v in keypoints[2::3])
    if "segmentation" in annotation:
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], bytes):
            # JSON has no bytes
            segmentation = {**segmentation, "counts": segmentation["counts"].decode("ascii")}
        converted["segmentation"] = segmentation
    return converted


def convert_to_coco_json(dataset_name, output_file, allow_cached=True):
    """Writes a registered data set of instances as a file in COCO's format.

    Args:
        dataset_name: its name.
        output_file: path of the file. Several processes may ask for it at once.
        allow_cached: leave a file that is there already as it is.
    """
    PathManager.mkdirs(os.path.dirname(output_file))
    with file_lock(output_file):
        if not (allow_cached and PathManager.exists(output_file)):
            _write_json(convert_to_coco_dict(dataset_name), output_file)
            return
    logger.warning(
        "'%s' was written before and is used again; delete it if the data set has changed since.",
        output_file,
    )


def _write_json(content: dict, output_file: str) -> None:
    logger.info("Writing annotations in COCO format to '%s' ...", output_file)
    # moved into place when complete: being killed half-way leaves no broken file
    incomplete = output_file + ".tmp"
    with PathManager.open(incomplete, "w") as f:
        json.dump(content, f)
    shutil.move(incomplete, output_file)
