# SPDX-License-Identifier: Apache-2.0
"""Compares the subsets of CUHK-SYSU (occlusion, low resolution) with the rest of the data set.

The subsets are separate files that not every copy contains and that nothing else verifies. Their
images must be test images, their boxes those of ``Images.mat``, and their matches must not be
different persons in the ``TestG*.mat``.
"""

from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou

from person_search.data.datasets.common import IrregularityLog, xywh_to_xyxy
from person_search.data.datasets.cuhk_sysu_files import (
    IMAGES_MAT,
    POOL_MAT,
    SUBSETS,
    existing_subsets,
    listed_boxes,
    protocol_path,
    read_images,
    read_protocol,
    read_test_names,
    reference_protocol,
)

SAME_BOX_IOU = 0.5
"""Minimum overlap of a subset's box with an annotated box to be of the same person."""


def readable_subsets(root: Path) -> list[str]:
    """Returns the subsets that exist, are readable and contain test images only."""
    if not (root / POOL_MAT).exists():
        return []
    pool = set(read_test_names(root))
    return [name for name in existing_subsets(root) if not _reading_error(root, name, pool)]


def check_subsets(root: Path, log: IrregularityLog) -> tuple[list[str], list[str]]:
    """Checks all subsets.

    Args:
        root: Folder of the data set.
        log: Receives boxes that differ slightly from the annotated ones.

    Returns:
        A note for each missing subset, and an error for each unreadable subset and contradiction.

    Raises:
        FileNotFoundError: If a file to compare with is missing.
        ValueError: If a file to compare with is unreadable.
    """
    existing = existing_subsets(root)
    notes = [
        f"{protocol_path(root, name)} does not exist: there is no protocol '{name}'"
        for name in SUBSETS
        if name not in existing
    ]
    if not existing:
        return notes, []
    pool = set(read_test_names(root))
    images = read_images(root)
    boxes_of: dict[str, list] = {name: [] for name in images["names"].tolist()}
    for name, box in zip(images["names"][images["box_image"]], images["boxes"], strict=True):
        boxes_of[name].append(box)
    reference = reference_protocol(root)
    identities: dict[tuple, int] = {}
    for rows in listed_boxes(read_protocol(root, reference)):
        for number, key in rows:
            identities.setdefault(key, number)
    errors = []
    for name in existing:
        error = _reading_error(root, name, pool)
        if error:
            errors.append(error)
            continue
        path = protocol_path(root, name)
        queries, positives = listed_boxes(read_protocol(root, name))
        for part, rows in (("query", queries), ("gallery", positives)):
            for number, key in rows:
                where = f"{path}: entry {number + 1}, {part}"
                errors += _compare_box(where, key[0], key[1], boxes_of.get(key[0], []), log)
        person_of = {number: identities.get(key) for number, key in queries}
        for number, key in positives:
            person, expected = identities.get(key), person_of[number]
            if person is not None and expected is not None and person != expected:
                errors.append(
                    f"{path}: entry {number + 1}: {key[0]} box {list(key[1])} is listed as a "
                    f"match, but {reference} has another person there (that of its query "
                    f"{person + 1}; this one is that of its query {expected + 1})"
                )
    return notes, errors


def _reading_error(root: Path, name: str, pool: set[str]) -> str:
    """Returns why a subset is unusable as a whole, or an empty text."""
    path = protocol_path(root, name)
    try:
        arrays = read_protocol(root, name)
    except (ValueError, OSError) as e:
        return str(e)
    if not len(arrays["query_image"]):
        return f"{path}: it contains no queries"
    unknown = [listed for listed in arrays["names"].tolist() if listed not in pool]
    if not unknown:
        return ""
    return (
        f"{path}: {len(unknown)} of its images are not among those of {POOL_MAT}, the first: "
        f"{unknown[0]!r}"
    )


def _compare_box(
    where: str, name: str, box: tuple[float, ...], boxes: list[np.ndarray], log: IrregularityLog
) -> list[str]:
    """Returns an error if a box is not one of its image; a slightly different one is logged."""
    if any(tuple(other.tolist()) == box for other in boxes):
        return []
    mine, others = (Boxes(torch.from_numpy(xywh_to_xyxy(np.array(b)))) for b in (box, boxes))
    overlap = max(pairwise_iou(mine, others)[0].tolist(), default=0.0)
    if overlap >= SAME_BOX_IOU:
        log.add("subset_box", where, f"{name} box {list(box)}, IoU {overlap:.2f}")
        return []
    return [
        f"{where}: the box {list(box)} (x, y, w, h) is none of the {len(boxes)} boxes that "
        f"{IMAGES_MAT} has in {name}"
    ]
