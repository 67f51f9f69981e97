# SPDX-License-Identifier: Apache-2.0
"""Reads CUHK-SYSU from the original files of the data set.

Box coordinates are kept as they are in the files, i.e. 1-based, because no published result
subtracts one. Training identities are positions in ``Train.mat``. Test identities are positions of
the queries, which all protocols g<size> share; a query of a subset (occlusion, low resolution) that
is not among them gets the next free number, so that one pass over the test set serves all
protocols.

Shape shorthand: B boxes of all images, Q queries, X gallery images of one query.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from person_search.data.datasets.annotations import (
    KEPT,
    NO_CAMERA,
    AnnotationTable,
    log_irregular_boxes,
)
from person_search.data.datasets.common import IrregularityLog, check_split, xywh_to_xyxy
from person_search.data.datasets.cuhk_sysu_files import (
    CUHK_SYSU_LAYOUT,
    IMAGE_FOLDER,
    IMAGES_MAT,
    POOL_MAT,
    SUBSETS,
    TRAIN_MAT,
    count_train_pids,
    existing_subsets,
    listed_boxes,
    protocol_path,
    read_images,
    read_protocol,
    read_test_names,
    read_train_identities,
    reference_protocol,
)
from person_search.data.datasets.image_sizes import image_sizes
from person_search.data.datasets.protocols import log_galleries
from person_search.data.datasets.records import make_records
from person_search.schema import UNLABELED_PID, Query, SearchProtocol

logger = logging.getLogger(__name__)

_SubsetQuery = tuple[int, int, str, tuple[float, ...]]
"""Query id, identity, image name and box (x, y, w, h) of a query of a subset."""


def _number_subset_queries(
    root: Path, reference: dict[str, np.ndarray], subsets: Sequence[str]
) -> dict[str, list[_SubsetQuery]]:
    """Numbers the queries of subsets.

    A query that the reference protocol contains (same image, same box) keeps its number. Any other
    gets the next one; its identity is that of the reference protocol's box, or a new one.
    """
    query_ids: dict[tuple, int] = {}
    person_ids: dict[tuple, int] = {}
    queries, positives = listed_boxes(reference)
    for index, key in queries:
        query_ids.setdefault(key, index)
        person_ids.setdefault(key, index)
    for index, key in positives:
        person_ids.setdefault(key, index)
    free = len(reference["query_image"])
    numbered: dict[str, list[_SubsetQuery]] = {}
    for subset in subsets:
        taken = set()
        numbered[subset] = []
        for _, key in listed_boxes(read_protocol(root, subset))[0]:
            query_id = query_ids.setdefault(key, free)
            if query_id in taken:  # a box listed twice in one subset makes two queries
                query_id = free
            free += query_id == free
            taken.add(query_id)
            person_id = person_ids.setdefault(key, query_id)
            numbered[subset].append((query_id, person_id, *key))
    return numbered


def _label_boxes(
    images: dict[str, np.ndarray],
    claims: Sequence[tuple[int, tuple[str, tuple[float, ...]], str]],
    log: IrregularityLog,
) -> np.ndarray:
    """Labels the boxes that identities claim.

    Args:
        images: Content of ``Images.mat``.
        claims: Identity, (image name, box) and location of each claim. The first box of the image
            with exactly these coordinates is labeled.
        log: Receives claims without a box and boxes claimed by two identities.

    Returns:
        (B,) identities, or ``UNLABELED_PID``.
    """
    labels = np.full(len(images["boxes"]), UNLABELED_PID, np.int32)
    row_of: dict[tuple, int] = {}
    names = images["names"][images["box_image"]].tolist()
    for row, (name, box) in enumerate(zip(names, images["boxes"].tolist(), strict=True)):
        row_of.setdefault((name, tuple(box)), row)
    for label, key, where in claims:
        hit = row_of.get(key)
        if hit is None:
            log.add("unmatched_label", where, f"{key[0]} box {list(key[1])}")
        elif labels[hit] == UNLABELED_PID:
            labels[hit] = label
        elif labels[hit] != label:
            log.add("claimed_twice", where, f"{key[0]} box {list(key[1])}")
    return labels


def load_cuhk_sysu(
    root: str | Path,
    split: str,
    irregularities: IrregularityLog | None = None,
    *,
    subsets: Sequence[str] | None = None,
) -> list[dict]:
    """Loads the records of a split of CUHK-SYSU.

    Args:
        root: Folder with ``Image`` and ``annotation``.
        split: ``train`` or ``test``.
        irregularities: Receives the irregularities. Default: one warning per kind is logged.
        subsets: Subsets whose queries the test records contain. Default: all existing ones.

    Returns:
        Records sorted by file name. ``image_id`` is the position in the split. Annotations have
        ``is_hard``; test records have ``queries``.

    Raises:
        IncompleteDatasetError: If a file is missing; names the first one.
        ValueError: If the files contradict each other; names file and entry.
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

    queries = None
    if split == "train":
        names = sorted(set(images["names"].tolist()) - set(test_names))
        source, num_pids = root / TRAIN_MAT, count_train_pids(root)
        train = read_train_identities(root)
        claims = [
            (pid, (name, tuple(box)), f"{source}: Train{{{pid + 1}}}")
            for pid, name, box in zip(
                train["pids"].tolist(),
                train["names"].tolist(),
                train["boxes"].tolist(),
                strict=True,
            )
        ]
    else:
        names = test_names
        source = protocol_path(root, reference_protocol(root))
        protocol = read_protocol(root, reference_protocol(root))
        num_pids = len(protocol["query_image"])
        claims = [
            (query, key, f"{source}: entry {query + 1}, {part}")
            for part, rows in zip(("Query", "Gallery"), listed_boxes(protocol), strict=True)
            for query, key in rows
        ]
        queries = _queries_of_records(
            root, names, protocol, existing_subsets(root) if subsets is None else subsets
        )
    labels = _label_boxes(images, claims, log)

    # of all images, those of the split in the order of their names
    index_of = {name: index for index, name in enumerate(names)}
    new_index = np.array([index_of.get(name, -1) for name in images["names"].tolist()], np.int32)
    rows = np.flatnonzero(new_index[images["box_image"]] >= 0)
    paths = [root / IMAGE_FOLDER / name for name in names]
    sizes = image_sizes(root, f"{split}_sizes", paths, CUHK_SYSU_LAYOUT, log)
    table = AnnotationTable(
        image_ids=np.arange(len(names)),
        names=names,
        sizes=sizes,
        cam_ids=np.full(len(names), NO_CAMERA),
        boxes=xywh_to_xyxy(images["boxes"][rows]),
        box_image=new_index[images["box_image"][rows]],
        labels=labels[rows],
        left_out=np.full(len(rows), KEPT, np.uint8),
        num_pids=num_pids,
    )

    def place(kind: str, image: int, row: int | None) -> str:
        return f"{source if kind == 'twice_in_image' else root / IMAGES_MAT}: {names[image]}"

    log_irregular_boxes(table, sizes, log, place)
    records = make_records(table, paths, sizes, queries, {"is_hard": images["hard"][rows]})
    if irregularities is None:
        log.warn(logger, f"CUHK-SYSU {split}")
    return records


def _queries_of_records(
    root: Path, names: list[str], reference: dict[str, np.ndarray], subsets: Sequence[str]
) -> list[Query]:
    """Returns the queries of the reference protocol, then those that only subsets have."""
    image_id_of = {name: image_id for image_id, name in enumerate(names)}
    path = protocol_path(root, reference_protocol(root))
    queries = {}
    for query_id, (name, box) in listed_boxes(reference)[0]:
        if name not in image_id_of:
            raise ValueError(
                f"{path}: entry {query_id + 1}: the query image {name!r} is not in {POOL_MAT}"
            )
        queries[query_id] = _make_query(query_id, image_id_of[name], box, query_id)
    for subset, numbered in _number_subset_queries(root, reference, subsets).items():
        for query_id, person_id, name, box in numbered:
            if name not in image_id_of:
                raise ValueError(
                    f"{protocol_path(root, subset)}: the query image {name!r} is not in "
                    f"{POOL_MAT}; remove the file to do without this protocol"
                )
            query = _make_query(query_id, image_id_of[name], box, person_id)
            queries.setdefault(query_id, query)
    return list(queries.values())


def _make_query(query_id: int, image_id: int, box: Sequence[float], person_id: int) -> Query:
    xyxy = tuple(xywh_to_xyxy(np.array(box))[0].tolist())
    return Query(query_id=query_id, image_id=image_id, box=xyxy, person_id=person_id)


def load_cuhk_sysu_protocol(
    root: str | Path, name: str, irregularities: IrregularityLog | None = None
) -> SearchProtocol:
    """Loads a search protocol of CUHK-SYSU.

    Args:
        root: Folder with ``Image`` and ``annotation``.
        name: ``g`` and the gallery size (50, 100, 500, 1000, 2000, 4000), ``occlusion`` or
            ``low_resolution``.
        irregularities: Receives images listed twice and queries' own images in galleries.

    Returns:
        Protocol with the ``image_id``s of ``load_cuhk_sysu(root, "test")``. A query's
        ``person_id`` is its ``query_id``, except for some queries of the subsets.
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

    numbers = [(index, index) for index in range(len(arrays["query_image"]))]
    if name in SUBSETS:
        reference = read_protocol(root, reference_protocol(root))
        numbered = _number_subset_queries(root, reference, existing_subsets(root))[name]
        numbers = [(query_id, person_id) for query_id, person_id, *_ in numbered]
    queries = [
        _make_query(query_id, int(to_id[image]), box, person_id)
        for (query_id, person_id), image, box in zip(
            numbers, arrays["query_image"], arrays["query_boxes"], strict=True
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
        name_of = {image_id: test_name for test_name, image_id in test_ids.items()}
        places = [f"{path}: entry {index + 1}" for index in range(len(queries))]
        log_galleries(protocol, name_of, places, irregularities)
    return protocol
