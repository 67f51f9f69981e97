# SPDX-License-Identifier: Apache-2.0
"""PASCAL VOC: loading and registration."""

import os
import xml.etree.ElementTree as ET
from functools import partial

import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, MetadataCatalog

__all__ = ["load_voc_instances", "register_pascal_voc"]

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def load_voc_instances(dirname: str, split: str, class_names: list[str] | tuple[str, ...]):
    """Loads the objects of a VOC year.

    Args:
        dirname: folder with ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        split: a file of ``ImageSets/Main``, for example "trainval".
        class_names: the classes, in the order of the indices they get.

    Returns:
        One record per image, in the order of the split.
    """
    with PathManager.open(os.path.join(dirname, "ImageSets", "Main", split + ".txt")) as f:
        image_ids = np.loadtxt(f, dtype=str, ndmin=1)
    annotation_dir = PathManager.get_local_path(os.path.join(dirname, "Annotations/"))
    records = []
    for image_id in image_ids:
        with PathManager.open(os.path.join(annotation_dir, image_id + ".xml")) as f:
            root = ET.parse(f).getroot()
        records.append(
            {
                "file_name": os.path.join(dirname, "JPEGImages", image_id + ".jpg"),
                "image_id": image_id,
                "height": int(root.findall("./size/height")[0].text),
                "width": int(root.findall("./size/width")[0].text),
                "annotations": [_read_object(o, class_names) for o in root.findall("object")],
            }
        )
    return records


def _read_object(element: ET.Element, class_names) -> dict:
    box = element.find("bndbox")
    x0, y0, x1, y1 = (float(box.find(key).text) for key in ("xmin", "ymin", "xmax", "ymax"))
    return {
        "category_id": class_names.index(element.find("name").text),
        # VOC counts pixels from 1, and both corner pixels belong to the box
        "bbox": [x0 - 1.0, y0 - 1.0, x1, y1],
        "bbox_mode": BoxMode.XYXY_ABS,
    }


def register_pascal_voc(name, dirname, split, year, class_names=CLASS_NAMES):
    """Registers a split of a VOC year; see ``load_voc_instances``."""
    DatasetCatalog.register(name, partial(load_voc_instances, dirname, split, class_names))
    metadata = MetadataCatalog.get(name)
    metadata.set(dirname=dirname, split=split, year=year, thing_classes=list(class_names))
