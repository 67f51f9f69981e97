# SPDX-License-Identifier: Apache-2.0
"""Queries and search protocols of an annotation table.

``all`` searches every image except the query's own, ``multi_view`` every image of another camera.
A table may list galleries of its own: ``listed``, and those with names of their own.

Shape shorthand: I images, B annotations, Q queries, X gallery images, P positives.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from person_search.data.datasets.annotations import RULE_PROTOCOLS, AnnotationTable, GalleryTable
from person_search.data.datasets.common import IrregularityLog, pad_rows
from person_search.schema import Query, SearchProtocol


@lru_cache(maxsize=4)
def make_queries(table: AnnotationTable) -> tuple[Query, ...]:
    """Returns the listed queries or, if there are none, one per person and camera.

    The default queries are the person's largest box in each camera (without cameras, the largest
    box), for persons labeled in at least two images. ``query_id`` is then the position, ordered by
    person and camera.
    """
    if table.query_ids is None:
        rows = default_query_rows(table)
        ids = np.arange(len(rows))
        image, boxes, pids = table.box_image[rows], table.boxes[rows], table.labels[rows]
    else:
        ids, image = table.query_ids, table.query_image
        boxes, pids = table.query_boxes, table.query_pids
    return tuple(
        Query(
            query_id=query_id,
            image_id=image_id,
            box=tuple(box),
            person_id=pid,
            cam_id=cam if known else None,
        )
        for query_id, image_id, box, pid, cam, known in zip(
            ids.tolist(),
            table.image_ids[image].tolist(),
            boxes.tolist(),
            pids.tolist(),
            table.cam_ids[image].tolist(),
            table.has_camera[image].tolist(),
            strict=True,
        )
    )


def default_query_rows(table: AnnotationTable) -> np.ndarray:
    """Returns the annotations that serve as queries if none are listed."""
    rows = table.labeled_rows
    person, cam = table.labels[rows], table.cam_ids[table.box_image[rows]]
    # rounded, so that equal boxes at different places tie
    area = np.prod(table.boxes[rows, 2:] - table.boxes[rows, :2], axis=1).round(6)
    order = np.lexsort((rows, -area, cam, person))
    person, cam = person[order], cam[order]
    first = np.ones(len(order), bool)
    first[1:] = (person[1:] != person[:-1]) | (cam[1:] != cam[:-1])
    return rows[order][first & (table.count_images()[person] > 1)]


class _Places:
    """First box of each person in each image, in the order of the images."""

    def __init__(self, table: AnnotationTable):
        rows = table.labeled_rows
        rows = rows[np.lexsort((rows, table.box_image[rows], table.labels[rows]))]
        person, image = table.labels[rows], table.box_image[rows]
        first = np.ones(len(rows), bool)
        first[1:] = (person[1:] != person[:-1]) | (image[1:] != image[:-1])
        self._rows = rows[first]
        self._starts = np.searchsorted(person[first], np.arange(table.num_pids + 1))

    def rows_of(self, pid: int) -> np.ndarray:
        """Returns the annotations of a person, one per image."""
        return self._rows[self._starts[pid] : self._starts[pid + 1]]


@lru_cache(maxsize=4)
def protocol_names(table: AnnotationTable) -> tuple[str, ...]:
    """Returns the protocols of a table, its default first.

    ``multi_view`` is offered if at least one query has a match in another camera.
    """
    names = (*table.galleries, "all")
    places = _Places(table)
    matched = any(
        _in_other_camera(
            table, table.row_of_image[q.image_id], table.box_image[places.rows_of(q.person_id)]
        ).any()
        for q in make_queries(table)
    )
    return (*names, "multi_view") if matched else names


def make_protocol(table: AnnotationTable, name: str) -> SearchProtocol:
    """Creates one of the protocols named by :func:`protocol_names`."""
    if name in table.galleries:
        return _listed_protocol(table, name, table.galleries[name])
    return rule_protocol(table, name)


def rule_protocol(
    table: AnnotationTable, name: str, keep_unmatched: bool = False
) -> SearchProtocol:
    """Creates the protocol ``all`` or ``multi_view``. The person's first box in an image matches.

    Args:
        table: Annotations of a test set.
        name: ``all`` or ``multi_view``.
        keep_unmatched: Keeps the queries of ``multi_view`` that have no match in another camera.
    """
    if name not in RULE_PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; allowed: {list(RULE_PROTOCOLS)}")
    places = _Places(table)
    kept: list[Query] = []
    own_images: list[int] = []
    positives: list[np.ndarray] = []
    for query in make_queries(table):
        own = table.row_of_image[query.image_id]
        rows = places.rows_of(query.person_id)
        if name == "all":
            searched = table.box_image[rows] != own
        else:
            searched = _in_other_camera(table, own, table.box_image[rows])
            if not searched.any() and not keep_unmatched:
                continue
        kept.append(query)
        own_images.append(own)
        positives.append(rows[searched])
    own_rows = np.array(own_images, np.int64)
    if name == "all":
        excluded = {"excluded": table.image_ids[own_rows, None].astype(np.int32)}
    else:  # the queries of a camera share a list
        images = np.arange(len(table.names))
        _, first, list_of = np.unique(
            table.cam_ids[own_rows], return_index=True, return_inverse=True
        )
        lists = [
            table.image_ids[~_in_other_camera(table, int(own_rows[index]), images)]
            for index in first
        ]
        excluded = {"excluded": pad_rows(lists), "excluded_row": list_of.astype(np.int32)}
    rows = np.concatenate([np.zeros(0, np.int64), *positives])
    return SearchProtocol(
        name=name,
        queries=kept,
        gallery=None,
        positive_query=_repeat_index(positives),
        positive_image=table.image_ids[table.box_image[rows]].astype(np.int32),
        positive_box=table.boxes[rows].astype(np.float32),
        **excluded,
    )


def _in_other_camera(table: AnnotationTable, own: int, images: np.ndarray) -> np.ndarray:
    """Returns (N,) bool: whether images (rows) are of another known camera than ``own``."""
    if not table.has_camera[own]:
        return np.zeros(len(images), bool)
    return table.has_camera[images] & (table.cam_ids[images] != table.cam_ids[own])


def _listed_protocol(table: AnnotationTable, name: str, listed: GalleryTable) -> SearchProtocol:
    taking_part = np.flatnonzero(listed.takes_part)
    all_queries = make_queries(table)
    queries = [all_queries[row] for row in taking_part]
    gallery = listed.gallery[taking_part]
    if listed.match_query is None or listed.match_image is None or listed.match_boxes is None:
        # each listing of an image that shows the person
        places = _Places(table)
        positives, images = [], []
        for query, row in zip(queries, gallery, strict=True):
            rows = places.rows_of(query.person_id)
            ids = table.image_ids[table.box_image[rows]].tolist()
            row_at = dict(zip(ids, rows.tolist(), strict=True))
            held = [image_id for image_id in row.tolist() if image_id in row_at]
            positives.append(np.array([row_at[image_id] for image_id in held], np.int64))
            images += held
        index, image = _repeat_index(positives), np.array(images)
        boxes = table.boxes[np.concatenate([np.zeros(0, np.int64), *positives])]
    else:
        new_index = np.full(len(all_queries), -1, np.int32)
        new_index[taking_part] = np.arange(len(taking_part))
        index, image, boxes = new_index[listed.match_query], listed.match_image, listed.match_boxes
    return SearchProtocol(
        name=name,
        queries=queries,
        gallery=gallery,
        positive_query=index.astype(np.int32),
        positive_image=image.astype(np.int32),
        positive_box=boxes.astype(np.float32),
    )


def _repeat_index(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the position of each part, repeated by the length of the part."""
    return np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])


def log_galleries(
    protocol: SearchProtocol,
    name_of: dict[int, str],
    places: Sequence[str],
    log: IrregularityLog,
) -> None:
    """Logs galleries that list an image twice or contain the query's own image.

    Args:
        protocol: Protocol with listed galleries.
        name_of: Name of each image id.
        places: Location to report for each query.
        log: Receives the irregularities.
    """
    if protocol.gallery is None:
        return
    for place, query, row in zip(places, protocol.queries, protocol.gallery, strict=True):
        images, counts = np.unique(row[row >= 0], return_counts=True)
        for image_id in images[counts > 1].tolist():
            log.add("listed_twice", place, name_of[image_id])
        if query.image_id in images:
            log.add("own_image", place, name_of[query.image_id])
