# SPDX-License-Identifier: Apache-2.0
"""Record the data package of the real Detectron2 for the parity test of lite.

Run it where the real package comes first:

    PYTHONPATH=<checkout of Detectron2> python record_data.py

It writes data/data.json: for each function in ``CASES`` what it returned. Most of it is about
randomness: with the same seeds, the same images come in the same order, augmented the same way.
"""

import importlib.util
import itertools
import os
import pickle
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
    load_proposals_into_dataset,
    samplers,
)
from detectron2.data import transforms as T
from detectron2.data.datasets.coco import convert_to_coco_dict, load_coco_json
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image

DATA_FILE = Path(__file__).parent / "data" / "data.json"


def _load_core():
    path = Path(__file__).parent / "record_core.py"
    spec = importlib.util.spec_from_file_location("record_core", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


core = _load_core()


def picture(dtype=np.uint8):
    """(60, 90, 3) image: a smooth gradient with a pattern on it."""
    y, x, c = np.mgrid[0:60, 0:90, 0:3]
    return ((2 * x + 3 * y * (c + 1) + 40 * ((x // 7 + y // 5) % 2)) % 256).astype(dtype)


def digest(array):
    """Type, shape, mean, and a mean that feels where the values are."""
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
    "extent": lambda: T.RandomExtent((0.5, 1.5), (0.3, 0.4)),
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
            if name == "extent" and dtype is np.float32:
                continue  # PIL has no colors in floating point
            image = picture(dtype)
            aug_input = T.AugInput(image, boxes=boxes.copy(), sem_seg=picture()[:, :, 0])
            augmentation(aug_input)
            results[name].append(
                [digest(aug_input.image), aug_input.boxes, digest(aug_input.sem_seg)]
            )
        if not name.startswith("apply"):
            results[name].append(repr(augmentation))
    return results


def resize_transform():
    image, floats = picture(), picture(np.float32)
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
        "rotated": transform.apply_rotated_box(np.array([[10.0, 20, 4, 8, 30]])),
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
        file_name = f"{folder}/picture.png"
        Image.fromarray(picture()).save(file_name)
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
        file_name = f"{folder}/picture.png"
        Image.fromarray(picture()).save(file_name)
        for orientation in range(10):
            exif = Image.Exif()
            exif[274] = orientation
            turned = f"{folder}/{orientation}.png"
            Image.fromarray(picture()).save(turned, exif=exif)
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


def proposals():
    with tempfile.TemporaryDirectory() as folder:
        file_name = f"{folder}/proposals.pkl"
        boxes = np.array([[0, 0, 5, 5], [1, 1, 50, 50], [2, 2, 2, 7]], dtype=np.float32)
        logits = np.array([0.1, 0.5, 0.3], dtype=np.float32)
        content = {"indexes": [3, 9], "scores": [logits] * 2, "boxes": [boxes] * 2}
        Path(file_name).write_bytes(pickle.dumps(content))
        record = load_proposals_into_dataset([_record("x.png")], file_name)[0]
    before = [record["proposal_boxes"], record["proposal_objectness_logits"]]
    transforms = T.TransformList([T.HFlipTransform(90)])
    detection_utils.transform_proposals(record, (60, 90), transforms, proposal_topk=2)
    found = record["proposals"]
    return [*before, found.proposal_boxes.tensor, found.objectness_logits, found.image_size]


def coco_format():
    records = [
        _record("a.png"),
        {"file_name": "b.png", "image_id": 4, "height": 5, "width": 6, "annotations": []},
    ]
    DatasetCatalog.register("parity_source", lambda: records)
    MetadataCatalog.get("parity_source").set(thing_classes=["cat", "dog", "a person on a bike"])
    try:
        written = convert_to_coco_dict("parity_source")
        written["info"].pop("date_created")
        kept = [len(get_detection_dataset_dicts("parity_source", filter_empty=f)) for f in (0, 1)]
        with tempfile.TemporaryDirectory() as folder:
            file_name = f"{folder}/set.json"
            Path(file_name).write_text(core.json.dumps(written))
            read = load_coco_json(file_name, "images", "parity_read", ["area"])
        metadata = MetadataCatalog.get("parity_read").as_dict()
        return {"written": written, "read": read, "metadata": metadata, "kept": kept}
    finally:
        DatasetCatalog.pop("parity_source")
        for name in ("parity_source", "parity_read"):
            MetadataCatalog.pop(name, None)


def builtin_metadata():
    splits = [f"{p}coco_{s}" for p in ("", "keypoints_") for s in ("2014_minival", "2017_val_100")]
    splits += ["coco_2017_test", "coco_2017_test-dev", "voc_2007_trainval", "voc_2012_val"]
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))

    def without_root(value):
        return value.removeprefix(root) if isinstance(value, str) else value

    return {
        "metadata": {
            name: {k: without_root(v) for k, v in MetadataCatalog.get(name).as_dict().items()}
            for name in splits
        },
        "flip": detection_utils.create_keypoint_hflip_indices("keypoints_coco_2017_val"),
    }


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
        proposals,
        coco_format,
        builtin_metadata,
    )
}

if __name__ == "__main__":
    core.write_record(DATA_FILE, CASES)
