# SPDX-License-Identifier: Apache-2.0
"""Compares the subsets of CUHK-SYSU (occlusion, low resolution) with the rest of the data set.

They are files of their own that not every copy holds, and nothing else vouches for them: their
images must be test images, their boxes those of ``Images.mat``, and whom they take for one person
must be one person in the ``TestG*.mat`` too.

Shape shorthand: Q queries, P positives of all queries.
"""

from dataclasses import dataclass, field
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
    protocol_path,
    read_images,
    read_protocol,
    read_test_names,
    reference_protocol,
)

SAME_BOX_IOU = 0.5
"""A box that overlaps no true box as much is not that of a person of the image."""


@dataclass
class SubsetFindings:
    """What is to be said about the subsets.

    Args:
        notes: a line for each that is not there.
        errors: a line for each that cannot be read or contradicts the rest, and in what.
        irregularities: boxes that are a little off.
    """

    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    irregularities: IrregularityLog = field(default_factory=IrregularityLog)


def readable_subsets(root: Path) -> list[str]:
    """Returns the subsets that are there, can be read and hold test images only."""
    if not (root / POOL_MAT).exists():
        return []
    pool = set(read_test_names(root))
    return [name for name in existing_subsets(root) if not _reading_errors(root, name, pool)]


def check_subsets(root: Path) -> SubsetFindings:
    """Looks at all subsets.

    Raises:
        FileNotFoundError, ValueError: the files to compare them with cannot be read.
    """
    findings = SubsetFindings()
    for name in SUBSETS:
        if name not in existing_subsets(root):
            findings.notes.append(
                f"{protocol_path(root, name)} does not exist: there is no protocol '{name}'"
            )
    if not existing_subsets(root):
        return findings
    pool = set(read_test_names(root))
    boxes_of = _boxes_by_image(read_images(root))
    people = _people(read_protocol(root, reference_protocol(root)))
    for name in existing_subsets(root):
        errors = _reading_errors(root, name, pool)
        findings.errors += errors
        if errors:
            continue
        path, arrays = protocol_path(root, name), read_protocol(root, name)
        findings.errors += _compare_boxes(path, arrays, boxes_of, findings.irregularities)
        findings.errors += _compare_people(path, arrays, people, reference_protocol(root))
    return findings


def _reading_errors(root: Path, name: str, pool: set[str]) -> list[str]:
    """Returns a line for a file that cannot be read, that is empty or that has other images."""
    path = protocol_path(root, name)
    try:
        arrays = read_protocol(root, name)
    except (ValueError, OSError) as e:
        return [str(e)]
    if not len(arrays["query_image"]):
        return [f"{path}: it holds no queries"]
    unknown = [listed for listed in arrays["names"].tolist() if listed not in pool]
    if not unknown:
        return []
    return [
        f"{path}: {len(unknown)} of its images are not among those of {POOL_MAT}, the first: "
        f"{unknown[0]!r}"
    ]


def _boxes_by_image(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the (n, 4) boxes x, y, w, h of each image."""
    order = np.argsort(images["box_image"], kind="stable")
    edges = np.searchsorted(images["box_image"][order], np.arange(len(images["names"]) + 1))
    names = images["names"].tolist()
    return {
        name: images["boxes"][order[first:last]]
        for name, first, last in zip(names, edges[:-1], edges[1:], strict=True)
    }


def _places(arrays: dict[str, np.ndarray]) -> list[tuple[str, int, str, tuple[float, ...]]]:
    """Returns (what it is, number of the query, image, box) of all queries and positives."""
    names, queries = arrays["names"].tolist(), range(len(arrays["query_image"]))
    rows = [
        ("query", number, names[image], tuple(box))
        for number, image, box in zip(
            queries, arrays["query_image"].tolist(), arrays["query_boxes"].tolist(), strict=True
        )
    ]
    rows += [
        ("gallery", number, names[image], tuple(box))
        for number, image, box in zip(
            arrays["positive_query"].tolist(),
            arrays["positive_image"].tolist(),
            arrays["positive_boxes"].tolist(),
            strict=True,
        )
    ]
    return rows


def _compare_boxes(
    path: Path,
    arrays: dict[str, np.ndarray],
    boxes_of: dict[str, np.ndarray],
    log: IrregularityLog,
) -> list[str]:
    """Returns a line per box that belongs to nobody; boxes a little off are irregular."""
    errors = []
    for what, number, name, box in _places(arrays):
        where = f"{path}: entry {number + 1}, {what}"
        true = boxes_of.get(name, np.zeros((0, 4)))
        if (true == box).all(axis=1).any():
            continue
        overlap = _largest_iou(np.array(box), true)
        if overlap >= SAME_BOX_IOU:
            log.add("subset_box", where, f"{name} box {list(box)}, IoU {overlap:.2f}")
        else:
            errors.append(
                f"{where}: the box {list(box)} (x, y, w, h) is none of the {len(true)} boxes that "
                f"{IMAGES_MAT} has in {name}"
            )
    return errors


def _largest_iou(box: np.ndarray, others: np.ndarray) -> float:
    """Returns the largest IoU of a box with others; boxes are x, y, w, h, none gives 0."""
    mine, theirs = (Boxes(torch.from_numpy(xywh_to_xyxy(b))) for b in (box, others))
    return max(pairwise_iou(mine, theirs)[0].tolist(), default=0.0)


def _people(reference: dict[str, np.ndarray]) -> dict[tuple, int]:
    """Returns the identity (number of the query) of every image and box of a protocol."""
    people: dict[tuple, int] = {}
    for _, number, name, box in _places(reference):
        people.setdefault((name, box), number)
    return people


def _compare_people(
    path: Path, arrays: dict[str, np.ndarray], people: dict[tuple, int], reference: str
) -> list[str]:
    """Returns a line per match that is another person in the reference protocol."""
    errors = []
    person_of: dict[int, int | None] = {}
    for what, number, name, box in _places(arrays):  # the queries come first
        person = people.get((name, box))
        if what == "query":
            person_of[number] = person
            continue
        expected = person_of[number]
        if person is not None and expected is not None and person != expected:
            errors.append(
                f"{path}: entry {number + 1}: {name} box {list(box)} is given as a match, but "
                f"{reference} has another person there (that of its query {person + 1}; this one "
                f"is that of its query {expected + 1})"
            )
    return errors
