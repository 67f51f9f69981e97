# SPDX-License-Identifier: Apache-2.0
"""Registers COCO and PASCAL VOC under $DETECTRON2_DATASETS, by default ./datasets.

Nothing is read until a data set is asked for, so the files need not be there.
"""

import os

from ..catalog import DatasetCatalog, MetadataCatalog
from .builtin_meta import _get_builtin_metadata
from .coco import register_coco_instances
from .pascal_voc import register_pascal_voc

# Part of the name and of the annotation file -> folder of the images.
_COCO_SPLITS = {
    "2014_train": "train2014",
    "2014_val": "val2014",
    "2014_minival": "val2014",
    "2014_valminusminival": "val2014",
    "2017_train": "train2017",
    "2017_val": "val2017",
    "2017_val_100": "val2017",
}
_COCO_TEST_SPLITS = ("test", "test-dev")


def _annotation_file(kind: str, split: str) -> str:
    # "2017_val_100" is in instances_val2017_100.json
    year, subset, *rest = split.split("_")
    return f"coco/annotations/{'_'.join([kind, subset + year, *rest])}.json"


_PREDEFINED_SPLITS_COCO = {
    "coco": {
        **{
            f"coco_{split}": (f"coco/{folder}", _annotation_file("instances", split))
            for split, folder in _COCO_SPLITS.items()
        },
        **{
            f"coco_2017_{subset}": (
                "coco/test2017",
                f"coco/annotations/image_info_{subset}2017.json",
            )
            for subset in _COCO_TEST_SPLITS
        },
    },
    "coco_person": {
        f"keypoints_coco_{split}": (f"coco/{folder}", _annotation_file("person_keypoints", split))
        for split, folder in _COCO_SPLITS.items()
    },
}


def register_all_coco(root: str) -> None:
    """Registers the instances and the person keypoints of COCO in ``root``/coco."""
    for group, splits in _PREDEFINED_SPLITS_COCO.items():
        for name, (image_root, json_file) in splits.items():
            register_coco_instances(
                name,
                _get_builtin_metadata(group),
                os.path.join(root, json_file),
                os.path.join(root, image_root),
            )


def register_all_pascal_voc(root: str) -> None:
    """Registers PASCAL VOC in ``root``/VOC2007 and ``root``/VOC2012."""
    splits = {2007: ("trainval", "train", "val", "test"), 2012: ("trainval", "train", "val")}
    for year, names in splits.items():
        for split in names:
            name = f"voc_{year}_{split}"
            register_pascal_voc(name, os.path.join(root, f"VOC{year}"), split, year)
            MetadataCatalog.get(name).evaluator_type = "pascal_voc"


if "coco_2017_train" not in DatasetCatalog:
    _root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    register_all_coco(_root)
    register_all_pascal_voc(_root)
