# SPDX-License-Identifier: Apache-2.0
"""Queries and search protocols of an annotation file (COCO-style JSON).

``all`` searches every image but the query's own, ``multi_view`` every image of another camera. A
file may list galleries of its own: ``listed`` and those that it names under ``protocols``.

Shape shorthand: I images, B annotations, Q queries, X gallery images, P positives.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from person_search.data.datasets.common import pad_rows, xywh_to_xyxy
from person_search.data.datasets.json_boxes import usable_boxes
from person_search.data.datasets.json_reader import read_tables
from person_search.data.datasets.json_tables import AnnotationTables, GalleryTable
from person_search.schema import Query, SearchProtocol


@lru_cache(maxsize=4)
def make_queries(tables: AnnotationTables) -> tuple[Query, ...]:
    """Returns the file's queries or, without any, one per person and camera.

    The rule: the person's largest box in each camera (without cameras: its largest box), of people
    who are labelled in two images or more; ``query_id`` is the position, by person, then camera.
    """
    if tables.query_ids is None:
        rows = default_query_rows(tables)
        ids = np.arange(len(rows))
        image, boxes, pids = tables.box_image[rows], tables.boxes[rows], tables.labels[rows]
    else:
        ids, image = tables.query_ids, tables.query_image
        boxes, pids = tables.query_boxes, tables.query_pids
    cams = tables.cam_ids[image].tolist()
    has_camera = tables.has_camera[image].tolist()
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
            tables.image_ids[image].tolist(),
            xywh_to_xyxy(boxes).tolist(),
            pids.tolist(),
            cams,
            has_camera,
            strict=True,
        )
    )


def default_query_rows(tables: AnnotationTables) -> np.ndarray:
    """Returns the annotations that serve as queries where the file names none."""
    rows = np.flatnonzero(usable_boxes(tables) & (tables.labels >= 0))
    person, image = tables.labels[rows], tables.box_image[rows]
    area = tables.boxes[rows, 2] * tables.boxes[rows, 3]
    cam = tables.cam_ids[image]
    order = np.lexsort((rows, -area, cam, person))
    person, cam = person[order], cam[order]
    first = np.ones(len(order), bool)
    first[1:] = (person[1:] != person[:-1]) | (cam[1:] != cam[:-1])
    images_of = count_images(tables, rows)
    return rows[order][first & (images_of[person] > 1)]


def count_images(tables: AnnotationTables, rows: np.ndarray) -> np.ndarray:
    """Returns (num_pids,): in how many images each person is, by the annotations ``rows``."""
    num_images = len(tables.names)
    pairs = np.unique(tables.labels[rows].astype(np.int64) * num_images + tables.box_image[rows])
    return np.bincount(pairs // num_images, minlength=tables.num_pids)


class _Places:
    """Where each person is: images in the order of the file, with the first box in each."""

    def __init__(self, tables: AnnotationTables):
        rows = np.flatnonzero(usable_boxes(tables) & (tables.labels >= 0))
        rows = rows[np.lexsort((rows, tables.box_image[rows], tables.labels[rows]))]
        person, image = tables.labels[rows], tables.box_image[rows]
        first = np.ones(len(rows), bool)
        first[1:] = (person[1:] != person[:-1]) | (image[1:] != image[:-1])
        self._rows = rows[first]
        self._starts = np.searchsorted(person[first], np.arange(tables.num_pids + 1))

    def rows_of(self, pid: int) -> np.ndarray:
        """Returns the annotations of a person, one per image."""
        return self._rows[self._starts[pid] : self._starts[pid + 1]]


@lru_cache(maxsize=4)
def protocol_names(tables: AnnotationTables) -> tuple[str, ...]:
    """Returns the protocols that the file allows, its default first."""
    names = (*tables.galleries, "all")
    return (*names, "multi_view") if _has_match_elsewhere(tables) else names


def _has_match_elsewhere(tables: AnnotationTables) -> bool:
    """Whether any query's person is in an image of another camera."""
    places = _Places(tables)
    row_of = {image_id: row for row, image_id in enumerate(tables.image_ids.tolist())}
    for query in make_queries(tables):
        images = tables.box_image[places.rows_of(query.person_id)]
        if _of_other_camera(tables, row_of[query.image_id], images).any():
            return True
    return False


def _of_other_camera(tables: AnnotationTables, own: int, images: np.ndarray) -> np.ndarray:
    """Returns (N,) bool: whether ``images`` are of another camera than ``own`` (all positions)."""
    if not tables.has_camera[own]:
        return np.zeros(len(images), bool)
    return tables.has_camera[images] & (tables.cam_ids[images] != tables.cam_ids[own])


def load_json_protocol(json_file: str | Path, name: str) -> SearchProtocol:
    """Makes a protocol of an annotation file.

    Args:
        json_file: see ``docs/adding_a_dataset.md``.
        name: one of ``protocol_names``.

    Returns:
        The protocol, with the ids of ``load_person_search_json``. A match is the person's first
        box in a gallery image, unless the file states the matches. ``multi_view`` leaves out
        queries whose person is in no other camera.

    Raises:
        ValueError: there is no such protocol.
    """
    tables = read_tables(json_file)
    names = protocol_names(tables)
    if name not in names:
        hint = ""
        if name == "multi_view":
            hint = "; multi_view needs cam_id, and a query whose person is in two cameras"
        raise ValueError(f"{json_file} has no protocol {name!r}, but {list(names)}{hint}")
    if name in tables.galleries:
        return _listed_protocol(tables, name, tables.galleries[name])
    return _rule_protocol(tables, name)


def _rule_protocol(tables: AnnotationTables, name: str) -> SearchProtocol:
    """``all`` or ``multi_view``."""
    places = _Places(tables)
    row_of = {image_id: row for row, image_id in enumerate(tables.image_ids.tolist())}
    kept: list[Query] = []
    own_images: list[int] = []
    positives: list[np.ndarray] = []
    for query in make_queries(tables):
        own = row_of[query.image_id]
        rows = places.rows_of(query.person_id)
        if name == "all":
            searched = tables.box_image[rows] != own
        else:
            searched = _of_other_camera(tables, own, tables.box_image[rows])
            if not searched.any():
                continue
        kept.append(query)
        own_images.append(own)
        positives.append(rows[searched])
    rows = np.concatenate([np.zeros(0, np.int64), *positives])
    return SearchProtocol(
        name=name,
        queries=kept,
        gallery=None,
        positive_query=_repeat_index(positives),
        positive_image=tables.image_ids[tables.box_image[rows]].astype(np.int32),
        positive_box=xywh_to_xyxy(tables.boxes[rows]).astype(np.float32),
        **_excluded_images(tables, np.array(own_images, np.int64), name == "multi_view"),
    )


def _excluded_images(
    tables: AnnotationTables, own: np.ndarray, other_cameras_only: bool
) -> dict[str, np.ndarray]:
    """Returns what queries in the images ``own`` must not search, as ``SearchProtocol`` wants it.

    With ``other_cameras_only`` every one of these images has a camera.
    """
    if not other_cameras_only:
        return {"excluded": tables.image_ids[own, None].astype(np.int32)}
    everything = np.arange(len(tables.names))
    _, first, row_of = np.unique(tables.cam_ids[own], return_index=True, return_inverse=True)
    others = [_of_other_camera(tables, int(own[index]), everything) for index in first]
    lists = pad_rows([tables.image_ids[~searched] for searched in others])
    return {"excluded": lists, "excluded_row": row_of.astype(np.int32)}


def _listed_protocol(tables: AnnotationTables, name: str, table: GalleryTable) -> SearchProtocol:
    queries = make_queries(tables)
    taking_part = np.flatnonzero(table.takes_part)
    gallery = table.gallery[taking_part]
    if table.matches is None:
        index, image, boxes = _matches_of(tables, [queries[row] for row in taking_part], gallery)
    else:
        new_index = np.full(len(queries), -1, np.int32)
        new_index[taking_part] = np.arange(len(taking_part))
        index, image, boxes = table.matches
        index = new_index[index]
    return SearchProtocol(
        name=name,
        queries=[queries[row] for row in taking_part],
        gallery=gallery,
        positive_query=index.astype(np.int32),
        positive_image=image.astype(np.int32),
        positive_box=xywh_to_xyxy(boxes).astype(np.float32),
    )


def _matches_of(
    tables: AnnotationTables, queries: list[Query], gallery: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns query index, image id and box of each listing of an image that holds the person."""
    places = _Places(tables)
    positives, images = [], []
    for query, listed in zip(queries, gallery, strict=True):
        rows = places.rows_of(query.person_id)
        ids = tables.image_ids[tables.box_image[rows]].tolist()
        row_at = dict(zip(ids, rows.tolist(), strict=True))
        held = [image_id for image_id in listed.tolist() if image_id in row_at]
        positives.append(np.array([row_at[image_id] for image_id in held], np.int64))
        images += held
    rows = np.concatenate([np.zeros(0, np.int64), *positives])
    return _repeat_index(positives), np.array(images, np.int32), tables.boxes[rows]


def _repeat_index(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the position of each part, as often as the part is long."""
    return np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])


# ---- metadata that reads no file before it is asked ----------------------------------------------


class LazyProtocols(Mapping):
    """The ``search_protocols`` of a data set, whose names stand in its annotation file.

    Args:
        find_file: gives the annotation file when it is needed.
    """

    def __init__(self, find_file: Callable[[], Path]):
        self._find_file = find_file

    # Detectron2's metadata compares a value with itself; a mapping would read the file for that
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _names(self) -> tuple[str, ...]:
        return protocol_names(read_tables(self._find_file()))

    def __getitem__(self, name: str) -> Callable[[], SearchProtocol]:
        if name not in self._names():
            raise KeyError(name)
        return partial(self._load, name)

    def _load(self, name: str) -> SearchProtocol:
        return load_json_protocol(self._find_file(), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())


class FirstProtocol(Sequence):
    """The ``default_search_protocols`` of a data set: the first one of its annotation file.

    Args:
        protocols: of the data set.
    """

    def __init__(self, protocols: LazyProtocols):
        self._protocols = protocols

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return (next(iter(self._protocols)),)[index]

    def __len__(self) -> int:
        return 1
