# SPDX-License-Identifier: Apache-2.0
"""The ground truth of a test set as flat arrays, taken from its data set records.

Shape shorthand: I images, M boxes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

import numpy as np
from detectron2.structures import BoxMode


@dataclass(frozen=True)
class GroundTruth:
    """All person boxes of a test set, labeled or not, and the queries of each image.

    Attributes:
        image_ids: (I,) int64, in the order of the records.
        image_sizes: (I, 2) int64 (height, width).
        offsets: (I + 1,) int64; image i has the boxes ``offsets[i]:offsets[i + 1]``.
        boxes: (M, 4) float64 XYXY in pixels of the original image.
        query_ids: ``image_id`` -> the ids of its queries, in the order of the record.
        image_names: (I,) str, names of the image files without folder, in Unicode form NFC.
    """

    image_ids: np.ndarray
    image_sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    query_ids: dict[int, list[int]]
    image_names: np.ndarray


def collect_ground_truth(records: Sequence[dict[str, Any]], dataset_name: str) -> GroundTruth:
    """Collects the ground truth from the records of a test set.

    Args:
        records: Data set records with ``queries``.
        dataset_name: Name of the data set, for messages.

    Raises:
        ValueError: If there are no records, an ``image_id`` occurs twice, or a record has no
            ``queries``.
    """
    if not records:
        raise ValueError(f"data set '{dataset_name}' has no records")
    boxes: list[list[float]] = []
    query_ids: dict[int, list[int]] = {}
    for record in records:
        image_id = record["image_id"]
        if image_id in query_ids:
            raise ValueError(f"data set '{dataset_name}': duplicate image_id {image_id}")
        if "queries" not in record:
            raise ValueError(
                f"data set '{dataset_name}': image_id {image_id} has no 'queries'. Search metrics "
                "need a test split; its records hold a list, which may be empty."
            )
        query_ids[image_id] = [query["query_id"] for query in record["queries"]]
        boxes.extend(
            BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in record["annotations"]
        )
    counts = [len(record["annotations"]) for record in records]
    names = [normalize("NFC", os.path.basename(record["file_name"])) for record in records]
    return GroundTruth(
        image_ids=np.array([record["image_id"] for record in records], np.int64),
        image_sizes=np.array([(record["height"], record["width"]) for record in records], np.int64),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        query_ids=query_ids,
        image_names=np.array(names, np.str_),
    )
