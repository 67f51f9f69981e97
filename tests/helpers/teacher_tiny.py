# SPDX-License-Identifier: Apache-2.0
"""Painted persons and a tiny teacher config, shared by the tests of the teachers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from psdiff_tiny import EMBED_DIM, tiny_cfg

from person_search.schema import UNLABELED_PID
from psdiff.teachers.embeddings import TeacherEmbeddings, describe_source

NAME = "colored_persons"
COLORS = [(220, 40, 40), (40, 220, 40), (40, 40, 220), (220, 220, 40)]
UNLABELED_COLOR = (20, 20, 20)
METHODS = ("hhcl", "s_reid", "mgn", "agw", "pplr")


def paint_persons(folder: Path, unlabeled: bool = False) -> list[dict]:
    """Paints twelve scenes with two persons each; an identity is a color.

    Args:
        folder: Folder of the images.
        unlabeled: Every third scene also contains a dark person without identity.
    """
    rng = np.random.default_rng(0)
    records = []
    for index in range(12):
        image = rng.integers(90, 130, (48, 84, 3), dtype=np.uint8)
        persons = [((index + slot * (1 + index % 3)) % 4, left) for slot, left in ((0, 6), (1, 34))]
        if unlabeled and index % 3 == 0:
            persons.append((UNLABELED_PID, 62))
        annotations = []
        for pid, left in persons:
            image[8:40, left : left + 16] = UNLABELED_COLOR if pid == UNLABELED_PID else COLORS[pid]
            annotations.append(
                {
                    "bbox": [left, 8, left + 16, 40],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 0,
                    "person_id": pid,
                }
            )
        path = str(folder / f"s{index}.png")
        cv2.imwrite(path, image)
        records.append(
            {
                "file_name": path,
                "image_id": index * 3,
                "height": 48,
                "width": 84,
                "cam_id": None,
                "annotations": annotations,
            }
        )
    return records


@contextmanager
def registered(records: list[dict]) -> Iterator[list[dict]]:
    """Registers records as the data set ``NAME``."""
    DatasetCatalog.register(NAME, lambda: records)
    try:
        yield records
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.pop(NAME, None)


def teacher_cfg(folder: Path, name: str = "hhcl", **teacher):
    """Returns the config of a tiny teacher; keywords are keys of MODEL.PSDIFF.TEACHER."""
    cfg = tiny_cfg()
    settings = {
        "NAME": name,
        "BACKBONE": "build_slim_resnet_backbone",
        "CROP_SIZE": [32, 16],
        "MAX_ITER": 30,
        "IDS_PER_BATCH": 4,
        "BASE_LR": 0.01,
        "SCHEDULE": "cosine",
        "QUEUE_SIZE": 4,
        "PART_DIM": 8,
        "NON_LOCAL": [1, 1],
        "NEIGHBORS": 3,
        "AGREEMENT_FROM_EPOCH": 1,
        **teacher,
    }
    for key, value in settings.items():
        assert key in cfg.MODEL.PSDIFF.TEACHER, key
        cfg.MODEL.PSDIFF.TEACHER[key] = value
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.FORMAT = "RGB"
    cfg.SEED = 1
    return cfg


def count_embeddings(records: list[dict], folder: Path):
    """Writes embeddings that identify box and flip; returns a config of PSDiff with them.

    Entry 0 counts the boxes, entry 1 is the flip.
    """
    count = sum(len(r["annotations"]) for r in records)
    feats = np.zeros((count, 2, EMBED_DIM))
    feats[..., 0] = np.arange(count)[:, None]
    feats[:, 1, 1] = 1
    cfg = teacher_cfg(folder, EMBEDDINGS=str(folder / "e.safetensors"))
    source = describe_source(NAME, records, "abc", "hhcl", "some")
    TeacherEmbeddings.save(cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS, records, feats, source)
    cfg.INPUT.MIN_SIZE_TRAIN = (48,)
    cfg.DATALOADER.MAPPER = "PSDiffMapper"
    return cfg
