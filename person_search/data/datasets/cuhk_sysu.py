# SPDX-License-Identifier: Apache-2.0
"""CUHK-SYSU: records and search protocols from the data set's original files.

The numbers of the files are kept as they are: boxes are 1-based pixels, because no published result
subtracts one. Training identities are the positions in ``Train.mat``; test identities are the
positions of the queries, which all protocols g<size> share. A query of the subsets (occlusion, low
resolution) that is not among them gets the next free number; so all figures come from one pass.

Shape shorthand: B boxes of all images, Q queries, X gallery images of one query.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from person_search.data.datasets.common import (
    IrregularityLog,
    check_split,
    make_annotation,
    make_query,
    xywh_to_xyxy,
)
from person_search.data.datasets.cuhk_sysu_files import (
    CUHK_SYSU_LAYOUT,
    IMAGE_FOLDER,
    IMAGES_MAT,
    POOL_MAT,
    SUBSETS,
    TRAIN_MAT,
    existing_subsets,
    protocol_path,
    read_images,
    read_protocol,
    read_test_names,
    read_train_identities,
    reference_protocol,
)
from person_search.data.datasets.image_sizes import image_sizes
from person_search.schema import UNLABELED_PID, Query, SearchProtocol

logger = logging.getLogger(__name__)

BORDER_TOLERANCE = 1.0
"""Pixels by which a box may reach over the border without being odd: boxes are 1-based."""


@dataclass(frozen=True)
class _SubsetQuery:
    """A query of a subset: its number, identity, image name and box (x, y, w, h as in the file)."""

    query_id: int
    person_id: int
    name: str
    box: tuple[float, ...]


def _number_subset_queries(
    root: Path, reference: dict[str, np.ndarray], subsets_read: Sequence[str] | None = None
) -> dict[str, list[_SubsetQuery]]:
    """Returns the queries of every subset that is there, or of those named.

    A query that the reference protocol has too (same image, same box) keeps its number. Any other
    gets the next one; it is the person whom the reference protocol has in that box, or a new one.
    """
    names = reference["names"].tolist()
    query_ids: dict[tuple, int] = {}
    person_ids: dict[tuple, int] = {}
    for index, key in enumerate(_keys(names, reference["query_image"], reference["query_boxes"])):
        query_ids.setdefault(key, index)
        person_ids.setdefault(key, index)
    positives = _keys(names, reference["positive_image"], reference["positive_boxes"])
    for index, key in zip(reference["positive_query"].tolist(), positives, strict=True):
        person_ids.setdefault(key, index)
    free = len(reference["query_image"])
    subsets: dict[str, list[_SubsetQuery]] = {}
    for subset in existing_subsets(root) if subsets_read is None else subsets_read:
        arrays = read_protocol(root, subset)
        names, taken = arrays["names"].tolist(), set()
        subsets[subset] = []
        for key in _keys(names, arrays["query_image"], arrays["query_boxes"]):
            query_id = query_ids.setdefault(key, free)
            if query_id in taken:  # the same box twice in one subset: two queries all the same
                query_id = free
            free += query_id == free
            taken.add(query_id)
            person_id = person_ids.setdefault(key, query_id)
            subsets[subset].append(_SubsetQuery(query_id, person_id, *key))
    return subsets


def _keys(names: list[str], images: np.ndarray, boxes: np.ndarray) -> list[tuple]:
    """Returns (image name, box) of each row."""
    rows = zip(images.tolist(), boxes.tolist(), strict=True)
    return [(names[image], tuple(box)) for image, box in rows]


class _BoxLabels:
    """Finds the box that an identity claims among the boxes of an image, and labels it."""

    def __init__(self, images: dict[str, np.ndarray], log: IrregularityLog):
        self.labels = np.full(len(images["boxes"]), UNLABELED_PID, np.int64)
        self._images = images
        self._log = log
        self._boxes_of = defaultdict(list)
        names = images["names"][images["box_image"]].tolist()
        for row, (name, box) in enumerate(zip(names, images["boxes"].tolist(), strict=True)):
            self._boxes_of[name].append((row, box))

    def claim(self, name: str, box: list[float], label: int, where: str) -> None:
        """Labels the first box of image ``name`` whose four numbers are all those of ``box``."""
        hit = next((row for row, other in self._boxes_of[name] if other == box), None)
        if hit is None:
            self._log.add("unmatched_label", where, f"{name} box {box}")
        elif self.labels[hit] == UNLABELED_PID:
            self.labels[hit] = label
        elif self.labels[hit] != label:
            self._log.add("claimed_twice", where, f"{name} box {box}")

    def report_twice_in_image(self, path: Path) -> None:
        """Reports every identity that ``path`` gives two boxes in one image."""
        seen = set()
        names = self._images["names"]
        for row in np.flatnonzero(self.labels != UNLABELED_PID):
            key = (int(self._images["box_image"][row]), int(self.labels[row]))
            if key in seen:
                self._log.add("twice_in_image", f"{path}: {names[key[0]]}", f"identity {key[1]}")
            seen.add(key)


def _label_train(root: Path, images: dict[str, np.ndarray], log: IrregularityLog) -> np.ndarray:
    """Returns (B,) training identities of all boxes, ``UNLABELED_PID`` where there is none."""
    train = read_train_identities(root)
    boxes = _BoxLabels(images, log)
    claims = zip(
        train["pids"].tolist(), train["names"].tolist(), train["boxes"].tolist(), strict=True
    )
    for pid, name, box in claims:
        boxes.claim(name, box, pid, f"{root / TRAIN_MAT}: Train{{{pid + 1}}}")
    boxes.report_twice_in_image(root / TRAIN_MAT)
    return boxes.labels


def _label_test(
    path: Path, protocol: dict[str, np.ndarray], images: dict[str, np.ndarray], log: IrregularityLog
) -> np.ndarray:
    """Returns (B,) test identities: the index of the query, on its box and on its positives."""
    boxes = _BoxLabels(images, log)
    names = protocol["names"]
    for query, (image, box) in enumerate(
        zip(protocol["query_image"], protocol["query_boxes"].tolist(), strict=True)
    ):
        boxes.claim(str(names[image]), box, query, f"{path}: entry {query + 1}, Query")
    positives = zip(
        protocol["positive_query"].tolist(),
        protocol["positive_image"].tolist(),
        protocol["positive_boxes"].tolist(),
        strict=True,
    )
    for query, image, box in positives:
        boxes.claim(str(names[image]), box, query, f"{path}: entry {query + 1}, Gallery")
    boxes.report_twice_in_image(path)
    return boxes.labels


def _make_records(
    root: Path,
    names: list[str],
    cache_name: str,
    images: dict[str, np.ndarray],
    labels: np.ndarray,
    log: IrregularityLog,
) -> list[dict]:
    """Returns one record per name with all its boxes that have an area."""
    folder = root / IMAGE_FOLDER
    sizes = image_sizes(root, cache_name, [folder / n for n in names], CUHK_SYSU_LAYOUT, log)
    rows_of = defaultdict(list)
    for row, image in enumerate(images["box_image"].tolist()):
        rows_of[image].append(row)
    index_of = {name: index for index, name in enumerate(images["names"].tolist())}
    records = []
    for image_id, name in enumerate(names):
        height, width = (int(value) for value in sizes[image_id])
        rows = rows_of[index_of[name]]
        where = f"{root / IMAGES_MAT}: {name}"
        annotations = _make_annotations(where, rows, images, labels, (height, width), log)
        records.append(
            {
                "file_name": os.path.join(folder, name),
                "image_id": image_id,
                "height": height,
                "width": width,
                "cam_id": None,
                "annotations": annotations,
            }
        )
    return records


def _make_annotations(
    where: str,
    rows: list[int],
    images: dict[str, np.ndarray],
    labels: np.ndarray,
    image_size: tuple[int, int],
    log: IrregularityLog,
) -> list[dict]:
    """Returns the annotations of one image: its boxes (given by ``rows``) that have an area."""
    annotations = []
    boxes = xywh_to_xyxy(images["boxes"][rows])
    for row, box in zip(rows, boxes, strict=True):
        if (box[2:] <= box[:2]).any():
            log.add("zero_size_box", where, str(box.tolist()))
            continue
        over = max((box[2:] - image_size[::-1]).max(), -box.min())
        if image_size[0] and over > BORDER_TOLERANCE:
            log.add("box_over_border", where, f"{box.tolist()}, image {image_size}")
        annotations.append(make_annotation(box, labels[row], is_hard=bool(images["hard"][row])))
    if not annotations:
        log.add("no_boxes", where, "no box with an area")
    return annotations


def load_cuhk_sysu(
    root: str | Path,
    split: str,
    irregularities: IrregularityLog | None = None,
    *,
    subsets: Sequence[str] | None = None,
) -> list[dict]:
    """Reads one split of CUHK-SYSU.

    Args:
        root: the folder that holds ``Image`` and ``annotation``.
        split: ``train`` or ``test``.
        irregularities: if given, collects what was odd; otherwise one warning per kind is logged.
        subsets: those whose queries the test records carry; None: all whose files are there.

    Returns:
        Records sorted by file name. ``image_id`` is the position in the split. Annotations carry
        ``is_hard``; test records carry ``queries``.

    Raises:
        IncompleteDatasetError: if a file is missing, naming the first one.
        ValueError: if the files contradict each other, naming file and entry.
    """
    check_split(split)
    root = Path(root)
    log = IrregularityLog() if irregularities is None else irregularities
    needed = [IMAGES_MAT, POOL_MAT, *([TRAIN_MAT] if split == "train" else []), IMAGE_FOLDER]
    CUHK_SYSU_LAYOUT.require(root, needed)
    images = read_images(root)
    test_names = read_test_names(root)
    unknown = sorted(set(test_names) - set(images["names"].tolist()))
    if unknown:
        raise ValueError(f"{root / POOL_MAT}: {unknown[0]!r} has no entry in {IMAGES_MAT}")

    if split == "train":
        names = sorted(set(images["names"].tolist()) - set(test_names))
        labels = _label_train(root, images, log)
        records = _make_records(root, names, "train_sizes", images, labels, log)
    else:
        name = reference_protocol(root)
        protocol = read_protocol(root, name)
        labels = _label_test(protocol_path(root, name), protocol, images, log)
        records = _make_records(root, test_names, "test_sizes", images, labels, log)
        _attach_queries(protocol_path(root, name), records, test_names, protocol)
        numbered = _number_subset_queries(root, protocol, subsets)
        _attach_subset_queries(root, records, test_names, protocol, numbered)
    if irregularities is None:
        log.warn(logger, f"CUHK-SYSU {split}")
    return records


def _attach_queries(
    path: Path, records: list[dict], names: list[str], protocol: dict[str, np.ndarray]
) -> None:
    """Adds ``queries`` to every test record, in place."""
    for record in records:
        record["queries"] = []
    index_of = {name: index for index, name in enumerate(names)}
    boxes = xywh_to_xyxy(protocol["query_boxes"])
    for query_id, image in enumerate(protocol["query_image"]):
        name = str(protocol["names"][image])
        if name not in index_of:
            raise ValueError(
                f"{path}: entry {query_id + 1}: the query image {name!r} is not in {POOL_MAT}"
            )
        records[index_of[name]]["queries"].append(make_query(query_id, boxes[query_id]))


def _attach_subset_queries(
    root: Path,
    records: list[dict],
    names: list[str],
    reference: dict[str, np.ndarray],
    numbered: dict[str, list[_SubsetQuery]],
) -> None:
    """Adds the queries that only subsets have, in place."""
    index_of = {name: index for index, name in enumerate(names)}
    attached = set(range(len(reference["query_image"])))
    for subset, queries in numbered.items():
        for query in queries:
            if query.name not in index_of:
                raise ValueError(
                    f"{protocol_path(root, subset)}: the query image {query.name!r} is not in "
                    f"{POOL_MAT}; remove the file to do without this protocol"
                )
            if query.query_id not in attached:
                box = xywh_to_xyxy(np.array(query.box))[0]
                records[index_of[query.name]]["queries"].append(make_query(query.query_id, box))
                attached.add(query.query_id)


def load_cuhk_sysu_protocol(
    root: str | Path, name: str, irregularities: IrregularityLog | None = None
) -> SearchProtocol:
    """Reads a protocol: ``g50``, ``g100``, ``g500``, ``g1000``, ``g2000``, ``g4000``, or a subset.

    Args:
        root: the folder that holds ``Image`` and ``annotation``.
        name: ``g`` and the gallery size, or ``occlusion``, ``low_resolution``.
        irregularities: if given, collects images listed twice and queries' own images.

    Returns:
        The protocol. ``image_id``s are those of ``load_cuhk_sysu(root, "test")``; a query's
        ``person_id`` is its ``query_id``, except for some of the subsets' own.
    """
    root = Path(root)
    arrays = read_protocol(root, name)
    path = protocol_path(root, name)
    CUHK_SYSU_LAYOUT.require(root, [POOL_MAT])
    test_ids = {test_name: image_id for image_id, test_name in enumerate(read_test_names(root))}
    unknown = [listed for listed in arrays["names"].tolist() if listed not in test_ids]
    if unknown:
        raise ValueError(f"{path}: the image {unknown[0]!r} is not among those of {POOL_MAT}")
    # one more element, so that the padding index -1 stays -1
    to_id = np.array([*(test_ids[n] for n in arrays["names"].tolist()), -1], np.int32)

    query_boxes = xywh_to_xyxy(arrays["query_boxes"]).tolist()
    numbers = [(index, index) for index in range(len(query_boxes))]
    if name in SUBSETS:
        subset = _number_subset_queries(root, read_protocol(root, reference_protocol(root)))[name]
        numbers = [(query.query_id, query.person_id) for query in subset]
    queries = [
        Query(query_id=number, image_id=int(to_id[image]), box=tuple(box), person_id=person)
        for (number, person), image, box in zip(
            numbers, arrays["query_image"], query_boxes, strict=True
        )
    ]
    protocol = SearchProtocol(
        name=name,
        queries=queries,
        gallery=to_id[arrays["gallery"]],
        positive_query=arrays["positive_query"],
        positive_image=to_id[arrays["positive_image"]],
        positive_box=xywh_to_xyxy(arrays["positive_boxes"]).astype(np.float32),
    )
    if irregularities is not None:
        gallery = to_id[arrays["gallery"]]
        _report_galleries(path, queries, gallery, list(test_ids), irregularities)
    return protocol


def _report_galleries(
    path: Path, queries: list[Query], gallery: np.ndarray, names: list[str], log: IrregularityLog
) -> None:
    """Reports galleries that list an image twice or hold the query's own image."""
    for index, (query, row) in enumerate(zip(queries, gallery, strict=True)):
        row = row[row >= 0]
        where = f"{path}: entry {index + 1}"
        images, counts = np.unique(row, return_counts=True)
        for image in images[counts > 1]:
            log.add("listed_twice", where, names[image])
        if query.image_id in images:
            log.add("own_image", where, names[query.image_id])
