# SPDX-License-Identifier: Apache-2.0
"""Records the data package of the real Detectron2 for ``test_parity.py``.

Run it with the real package:

    PYTHONPATH=<checkout of Detectron2> python record_data.py

It writes the results of the functions in ``CASES`` to data/data.json. With the same seeds, loaders
must return the same images in the same order with the same augmentations.
"""

import itertools
import json
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    MetadataCatalog,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    detection_utils,
    get_detection_dataset_dicts,
    samplers,
)
from detectron2.data import transforms as T
from detectron2.data.datasets.coco import load_coco_json
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image
from record_core import write_record

DATA_FILE = Path(__file__).parent / "data" / "data.json"


def make_image(dtype=np.uint8):
    """Returns a (60, 90, 3) image, a gradient with a pattern."""
    y, x, c = np.mgrid[0:60, 0:90, 0:3]
    return ((2 * x + 3 * y * (c + 1) + 40 * ((x // 7 + y // 5) % 2)) % 256).astype(dtype)


def digest(array):
    """Returns type, shape, mean, and a mean weighted by position."""
    array = np.asarray(array)
    flat = array.astype(np.float64).ravel()
    return [
        str(array.dtype),
        list(array.shape),
        float(flat.mean()),
        float((flat * np.linspace(-1, 1, flat.size)).mean()),
    ]


AUGMENTATIONS = {
    "flip": lambda: T.RandomFlip(),
    "flip_vertical": lambda: T.RandomFlip(0.7, horizontal=False, vertical=True),
    "shortest_choice": lambda: T.ResizeShortestEdge((30, 40), 70, "choice"),
    "shortest_range": lambda: T.ResizeShortestEdge((30, 80), 100, "range"),
    "shortest_fixed": lambda: T.ResizeShortestEdge(33),
    "resize": lambda: T.Resize((33, 44)),
    "random_resize": lambda: T.RandomResize([(20, 30), (40, 50)]),
    "scale": lambda: T.ResizeScale(0.3, 2.0, 50, 70),
    "fixed_crop": lambda: T.FixedSizeCrop((50, 100)),
    "fixed_crop_no_pad": lambda: T.FixedSizeCrop((50, 60), pad=False),
    "crop_relative_range": lambda: T.RandomCrop("relative_range", (0.3, 0.6)),
    "crop_relative": lambda: T.RandomCrop("relative", (0.3, 0.6)),
    "crop_absolute": lambda: T.RandomCrop("absolute", (30, 600)),
    "crop_absolute_range": lambda: T.RandomCrop("absolute_range", (20, 75)),
    "apply": lambda: T.RandomApply(T.RandomFlip(), 0.5),
    "apply_transform": lambda: T.RandomApply(T.HFlipTransform(90), 0.5),
    "brightness": lambda: T.RandomBrightness(0.5, 1.5),
    "contrast": lambda: T.RandomContrast(0.5, 1.5),
    "saturation": lambda: T.RandomSaturation(0.5, 1.5),
    "lighting": lambda: T.RandomLighting(10.0),
    "list": lambda: T.AugmentationList([T.RandomFlip(), T.ResizeShortestEdge((30, 40))]),
}


def augmentations():
    results = {}
    boxes = np.array([[5.0, 6, 30, 40], [0, 0, 90, 60]])
    for name, make in AUGMENTATIONS.items():
        augmentation = make()
        np.random.seed(3)
        results[name] = []
        for dtype in (np.uint8, np.uint8, np.uint8, np.float32):
            image = make_image(dtype)
            aug_input = T.AugInput(image, boxes=boxes.copy(), sem_seg=make_image()[:, :, 0])
            augmentation(aug_input)
            results[name].append(
                [digest(aug_input.image), aug_input.boxes, digest(aug_input.sem_seg)]
            )
        if not name.startswith("apply"):
            results[name].append(repr(augmentation))
    return results


def resize_transform():
    image, floats = make_image(), make_image(np.float32)
    transform = T.ResizeTransform(60, 90, 30, 50, Image.NEAREST)
    return {
        "uint8": digest(transform.apply_image(image)),
        "one_channel": digest(transform.apply_image(image[:, :, :1])),
        "flipped_float": digest(transform.apply_image(floats[::-1])),
        "cubic": digest(
            T.ResizeTransform(60, 90, 30, 50, Image.BICUBIC).apply_image(floats[:, :, 0])
        ),
        "inverse": digest(transform.inverse().apply_image(transform.apply_image(image))),
        "coords": transform.apply_coords(np.array([[1.0, 2], [3, 4]])),
    }


def sampler_streams():
    def first(sampler, count=40):
        return list(itertools.islice(sampler, count))

    rng = np.random.RandomState(0)
    records = [
        {"annotations": [{"category_id": int(c)} for c in rng.randint(0, 9, rng.randint(0, 4))]}
        for _ in range(20)
    ]
    factors_of = samplers.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    factors, linear = factors_of(records, 0.5), factors_of(records, 0.5, sqrt=False)
    subset = {"seed_shuffle": 2, "seed_subset": 3}
    seed_all_rng(11)
    return {
        "agreed_seed": first(samplers.TrainingSampler(13)),
        "training": first(samplers.TrainingSampler(13, seed=5)),
        "in_order": first(samplers.TrainingSampler(13, shuffle=False, seed=5)),
        "subset": first(samplers.RandomSubsetTrainingSampler(30, 0.4, **subset)),
        "subset_in_order": first(
            samplers.RandomSubsetTrainingSampler(30, 0.4, shuffle=False, **subset)
        ),
        "factors": [factors, linear],
        "repeat": first(samplers.RepeatFactorTrainingSampler(factors, seed=7)),
        "repeat_in_order": first(
            samplers.RepeatFactorTrainingSampler(linear, seed=7, shuffle=False)
        ),
        "grouped": first(
            samplers.GroupedBatchSampler(
                samplers.TrainingSampler(13, seed=5), [i % 3 for i in range(13)], 2
            )
        ),
    }


def map_with_failures():
    mapped = MapDataset(DatasetFromList(list(range(50))), lambda x: None if x % 3 else x)
    return [mapped[i] for i in range(50)]


def _mark(record):
    draws = [float(np.random.rand()), random.random(), float(torch.rand(()))]
    return {**record, "draws": draws}


def loaders():
    rng = np.random.RandomState(1)
    records = [
        {"image_id": i, "width": int(rng.randint(5, 50)), "height": int(rng.randint(5, 50))}
        for i in range(31)
    ]
    results = {}
    for num_workers, grouping in ((0, True), (0, False), (2, True), (2, False)):
        seed_all_rng(1)
        loader = build_detection_train_loader(
            records,
            mapper=_mark,
            sampler=samplers.TrainingSampler(31, seed=4),
            total_batch_size=3,
            aspect_ratio_grouping=grouping,
            num_workers=num_workers,
        )
        results[f"train {num_workers} {grouping}"] = [
            [[r["image_id"], r["draws"]] for r in batch] for batch in itertools.islice(loader, 8)
        ]
    test_loader = build_detection_test_loader(records, mapper=_mark, batch_size=2)
    results["test"] = [[r["image_id"] for r in batch] for batch in test_loader]
    results["counted"] = list(
        build_batch_data_loader(
            DatasetFromList(records),
            samplers.InferenceSampler(31),
            4,
            drop_last=False,
            collate_fn=len,
            seed=3,
        )
    )
    return results


def _record(file_name):
    return {
        "file_name": file_name,
        "image_id": 3,
        "height": 60,
        "width": 90,
        "annotations": [
            {"bbox": [5, 6, 30, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2, "person": 7},
            {"bbox": [-5.5, 6, 300, 20], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1},
            {"bbox": [1, 1, 3, 3], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 1},
        ],
    }


def mappers():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 50, 60)
    cfg.INPUT.MIN_SIZE_TEST = 50
    cfg.INPUT.CROP.ENABLED = True
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        file_name = f"{folder}/image.png"
        Image.fromarray(make_image()).save(file_name)
        np.random.seed(9)
        for is_train in (True, False):
            mapper = DatasetMapper(cfg, is_train)
            mapped = [mapper(_record(file_name)) for _ in range(4)]
            results[str(is_train)] = [str(mapper.augmentations)] + [
                [sorted(r), digest(r["image"].numpy())] for r in mapped
            ]
            if is_train:
                results["instances"] = [
                    [i.gt_boxes.tensor, i.gt_classes, i.image_size]
                    for i in (r["instances"] for r in mapped)
                ]
    return results


def images():
    results = {"exif": []}
    with tempfile.TemporaryDirectory() as folder:
        file_name = f"{folder}/image.png"
        Image.fromarray(make_image()).save(file_name)
        for orientation in range(10):
            exif = Image.Exif()
            exif[274] = orientation
            turned = f"{folder}/{orientation}.png"
            Image.fromarray(make_image()).save(turned, exif=exif)
            results["exif"].append(digest(detection_utils.read_image(turned, "RGB")))
        for mode in ("BGR", "RGB", "L", "YUV-BT.601"):
            image = detection_utils.read_image(file_name, mode)
            results[mode] = [
                digest(image),
                digest(detection_utils.convert_image_to_rgb(image, mode)),
            ]
        results["None"] = digest(detection_utils.read_image(file_name))
    return results


def crops_around_objects():
    np.random.seed(4)
    annotation = {"bbox": [10, 10, 50, 40], "bbox_mode": BoxMode.XYXY_ABS}
    crops = [
        detection_utils.gen_crop_transform_with_instance((20, 30), (60, 90), annotation)
        for _ in range(5)
    ]
    return [[int(c.x0), int(c.y0), int(c.w), int(c.h)] for c in crops]


COCO = {
    "images": [
        {"id": 4, "file_name": "b.png", "height": 5, "width": 6},
        {"id": 3, "file_name": "a.png", "height": 60, "width": 90},
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "a person on a bike"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 7, "bbox": [5, 6, 30, 20], "area": 600},
        {
            "id": 2,
            "image_id": 3,
            "category_id": 3,
            "bbox": [-5.5, 6, 305.5, 14],
            "area": 4277,
            "iscrowd": 1,
            "segmentation": [[0, 0, 9, 0, 9, 9], [1, 1]],
            "keypoints": [1, 2, 2, 5, 6, 0],
        },
    ],
}


def coco_format():
    try:
        with tempfile.TemporaryDirectory() as folder:
            file_name = f"{folder}/set.json"
            Path(file_name).write_text(json.dumps(COCO))
            DatasetCatalog.register(
                "parity_source",
                lambda: load_coco_json(file_name, "images", "parity_read", ["area"]),
            )
            kept = [
                len(get_detection_dataset_dicts("parity_source", filter_empty=f)) for f in (0, 1)
            ]
            read = DatasetCatalog.get("parity_source")
            raw = load_coco_json(file_name, "images")
        return {
            "read": read,
            "raw": raw,
            "metadata": MetadataCatalog.get("parity_read").as_dict(),
            "kept": kept,
        }
    finally:
        DatasetCatalog.pop("parity_source")
        for name in ("parity_source", "parity_read"):
            MetadataCatalog.pop(name, None)


CASES = {
    f.__name__: f
    for f in (
        augmentations,
        resize_transform,
        sampler_streams,
        map_with_failures,
        loaders,
        mappers,
        images,
        crops_around_objects,
        coco_format,
    )
}

if __name__ == "__main__":
    write_record(DATA_FILE, CASES)
