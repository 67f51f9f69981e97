# SPDX-License-Identifier: Apache-2.0
"""From the object of an annotation file (COCO-style JSON) to arrays, and all its faults at once.

The format is described in ``docs/adding_a_dataset.md``.

Shape shorthand: N entries of a list, B annotations.
"""

import posixpath
import re
from types import NoneType
from typing import Any

import numpy as np

from person_search.data.datasets.json_columns import Section, describe, unknown
from person_search.data.datasets.json_tables import (
    CROWD,
    LISTED,
    NO_CAMERA,
    OTHER_CATEGORY,
    RULE_PROTOCOLS,
    AnnotationTables,
    GalleryTable,
)
from person_search.schema import UNLABELED_PID

_NAME = re.compile(r"[A-Za-z0-9_]+")


def parse_document(document: dict) -> tuple[AnnotationTables, list[str]]:
    """Turns the object of an annotation file into arrays.

    Returns:
        The arrays, fit for use if the second part is empty: one sentence for every fault. Whether
        boxes lie in their images is not looked at here, since sizes may have to be read first.
    """
    findings: list[str] = []
    for key in ("images", "annotations"):
        if key not in document:
            findings.append(f"the key {key!r} is absent; there are {sorted(document)}")
    images = Section("images", document.get("images", []), findings)
    annotations = Section("annotations", document.get("annotations", []), findings)
    if "images" in document and not images.entries and not findings:
        findings.append("images is an empty list; at least one image is expected")
    image_part = _parse_images(images)
    row_of = {image_id: row for row, image_id in enumerate(image_part["image_ids"].tolist())}
    raw_pids = _person_ids(annotations)
    label_of, num_pids = _number_persons(document, raw_pids, findings)
    _report_unknown_persons(annotations, raw_pids, label_of)
    annotation_part: dict[str, Any] = {
        "boxes": annotations.boxes(),
        "box_image": _image_rows(annotations, row_of),
        "labels": _labels(raw_pids, label_of),
        "left_out": _left_out(document, annotations, findings),
    }
    query_part = _parse_queries(document, annotations, annotation_part, row_of, label_of, findings)
    galleries = _parse_galleries(document, query_part, row_of, findings)
    tables = AnnotationTables(
        **image_part, **annotation_part, num_pids=num_pids, **query_part, galleries=galleries
    )
    return tables, findings


def _parse_images(images: Section) -> dict[str, Any]:
    """Returns image_ids, names, sizes and cam_ids."""
    ids = images.ids()
    names = images.column("file_name", {str}, "the name of a file", "")
    for row, (entry, name) in enumerate(zip(images.entries, names, strict=True)):
        if "\0" in name or (not name.strip() and type(entry.get("file_name")) is str):
            images.add(row, f"file_name is {name!r}; the name of a file is expected")
    plain = [posixpath.normpath(name) if name.strip() else name for name in names]
    rows = [row for row, name in enumerate(plain) if name.strip()]
    images.duplicates("file_name", [plain[row] for row in rows], rows)
    optional: set[type] = {int, NoneType}
    sizes = np.zeros((len(images), 2), np.int64)
    for place, key in enumerate(("height", "width")):
        values = images.column(key, optional, "a whole number of pixels", 1)
        for row, value in enumerate(values):
            if value is not None and not 0 < value < 2**31:
                images.add(row, f"{key} is {value}; an image has at least one pixel")
                values[row] = 1
        sizes[:, place] = [value or 0 for value in values]
    sizes[(sizes == 0).any(axis=1)] = 0
    cams = images.column("cam_id", optional, "a whole number (number the cameras) or null", None)
    for row, cam in enumerate(cams):
        if cam is not None and not 0 <= cam < 2**31:
            images.add(row, f"cam_id is {cam}; a whole number from 0, or null, is expected")
            cams[row] = None
    cam_ids = np.array([NO_CAMERA if cam is None else cam for cam in cams], np.int64)
    return {"image_ids": ids, "names": plain, "sizes": sizes, "cam_ids": cam_ids}


def _image_rows(section: Section, row_of: dict[int, int], optional: bool = False) -> np.ndarray:
    """Returns (N,) int32 positions of the images that entries name; -1 for unknown ones."""
    ids = section.ids("image_id", optional, unique=False).tolist()
    rows = [row_of.get(image_id, -1) for image_id in ids]
    if -1 in rows:
        for row, image_id in enumerate(ids):
            if rows[row] < 0 <= image_id:
                section.add(row, f"image_id {image_id} is not among the images")
    return np.array(rows, np.int32)


def _person_ids(section: Section) -> list[int | str | None]:
    """Returns the identities as they stand in the file; None: unlabelled, absent or wrong."""
    kinds = {int, str, type(None)}
    expected = "a whole number, a name, or null (unlabelled)"
    values = section.column("person_id", kinds, expected, None)
    for row, value in enumerate(values):
        if value == UNLABELED_PID:
            values[row] = None
        elif value == "" or (type(value) is int and value < 0):
            section.add(row, f"person_id is {value!r}; people without identity have null or -1")
            values[row] = None
    return values


def _number_persons(
    document: dict, raw_pids: list, findings: list[str]
) -> tuple[dict[int | str, int], int]:
    """Returns identity -> 0, 1, ... in the order of ``persons``, or else sorted."""
    if document.get("persons") is not None:
        persons = Section("persons", document["persons"], findings)
        ids = persons.column("id", {int, str}, "a whole number or a name", None)
        persons.duplicates("id", [value for value in ids if value is not None])
        return {value: row for row, value in enumerate(ids) if value is not None}, len(ids)
    names = set(raw_pids) - {None}
    if len({type(name) for name in names}) > 1:
        number = next(name for name in names if type(name) is int)
        text = next(name for name in names if type(name) is str)
        findings.append(
            f"annotations: some person_id are numbers ({number}), others text ({text!r}): "
            "make them all one or the other"
        )
        return dict.fromkeys(names, 0), len(names)
    return {name: label for label, name in enumerate(sorted(names))}, len(names)


def _report_unknown_persons(section: Section, raw_pids: list, label_of: dict) -> None:
    if not set(raw_pids) <= set(label_of) | {None}:
        for row, pid in enumerate(raw_pids):
            if pid is not None and pid not in label_of:
                section.add(row, f"person_id {pid!r} is not among the persons")


def _labels(raw_pids: list, label_of: dict) -> np.ndarray:
    return np.array([label_of.get(pid, UNLABELED_PID) for pid in raw_pids], np.int32)


def _left_out(document: dict, annotations: Section, findings: list[str]) -> np.ndarray:
    """Returns (B,) why annotations are no person boxes: COCO's crowds, other categories."""
    left_out = np.zeros(len(annotations), np.uint8)
    categories = Section("categories", document.get("categories") or [], findings)
    ids = categories.ids()
    names = categories.column("name", {str}, "text", "")
    if len(ids):
        persons = {int(i) for i, name in zip(ids, names, strict=True) if name.lower() == "person"}
        if not persons and len(ids) > 1:
            findings.append(f"categories: none of {names} is 'person'; name the one of the people")
        persons = persons or {int(ids[0])}
        # with a single category there is nothing to choose
        chosen = annotations.ids("category_id", optional=len(ids) == 1, unique=False).tolist()
        known = set(ids.tolist()) | {-1}
        for row in unknown(chosen, known):
            annotations.add(row, f"category_id {chosen[row]} is not among the categories")
        left_out[[category not in persons | {-1} for category in chosen]] = OTHER_CATEGORY
    crowd = annotations.column("iscrowd", {int, bool, type(None)}, "0 or 1", 0)
    left_out[[bool(value) for value in crowd]] = CROWD
    return left_out


# ---- queries and galleries ---------------------------------------------------------------------


def _parse_queries(
    document: dict,
    annotations: Section,
    boxes: dict[str, np.ndarray],
    row_of: dict[int, int],
    label_of: dict,
    findings: list[str],
) -> dict[str, Any]:
    """Returns query_ids, query_image, query_boxes and query_pids; nothing without ``queries``."""
    has_ids = any("id" in entry for entry in annotations.entries)
    annotation_ids = annotations.ids(optional=True) if has_ids else np.zeros(0, np.int64)
    if document.get("queries") is None:
        return {}
    queries = Section("queries", document["queries"], findings)
    given_ids = queries.ids(optional=True)
    if (given_ids < 0).any() and (given_ids >= 0).any():
        findings.append("queries: give all of them an id, or none")
    query_ids = np.where(given_ids < 0, np.arange(len(queries)), given_ids)
    references = queries.ids("annotation_id", optional=True, unique=False)
    by_box = np.array([entry.get("annotation_id") is None for entry in queries.entries], bool)
    images, pids = _spelled_out(queries, by_box, row_of, label_of)
    query_boxes = queries.boxes(optional=True)
    annotation_row = {i: row for row, i in enumerate(annotation_ids.tolist()) if i >= 0}
    for row in range(len(queries)):
        if by_box[row]:
            if queries.entries[row].get("bbox") is None:
                queries.add(row, "neither annotation_id nor image_id, bbox and person_id is given")
            continue
        if {"image_id", "bbox", "person_id"} & queries.entries[row].keys():
            queries.add(row, "give annotation_id, or image_id, bbox and person_id, but not both")
        source = annotation_row.get(int(references[row]))
        if source is None:
            if references[row] >= 0:
                queries.add(row, f"annotation_id {references[row]} is not among the annotations")
            continue
        images[row], pids[row] = boxes["box_image"][source], boxes["labels"][source]
        query_boxes[row] = boxes["boxes"][source]
        if pids[row] == UNLABELED_PID:
            queries.add(row, f"annotation_id {references[row]} has no person_id to search for")
    return {
        "query_ids": query_ids,
        "query_image": images,
        "query_boxes": query_boxes,
        "query_pids": pids,
    }


def _spelled_out(
    queries: Section, by_box: np.ndarray, row_of: dict[int, int], label_of: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Returns image positions and identities of the queries that do not name an annotation."""
    images = np.full(len(queries), -1, np.int32)
    pids = np.full(len(queries), UNLABELED_PID, np.int32)
    for row in np.flatnonzero(by_box).tolist():
        entry = queries.entries[row]
        image_id, pid = entry.get("image_id"), entry.get("person_id")
        if type(image_id) is int and image_id in row_of:
            images[row] = row_of[image_id]
        elif entry.get("bbox") is not None:
            queries.add(row, f"image_id {describe(image_id)} is not among the images")
        if type(pid) in (int, str) and pid in label_of:
            pids[row] = label_of[pid]
        elif entry.get("bbox") is not None:
            queries.add(row, f"person_id {describe(pid)} is that of no annotation")
    return images, pids


def _parse_galleries(
    document: dict, queries: dict, row_of: dict[int, int], findings: list[str]
) -> dict[str, GalleryTable]:
    """Returns the protocols of the file: that of ``galleries`` first."""
    found: dict[str, dict] = {}
    if document.get("galleries") is not None:
        found[LISTED] = {"galleries": document["galleries"]}
    protocols = document.get("protocols") or {}
    if not isinstance(protocols, dict):
        findings.append(f"protocols is {describe(protocols)}; an object name -> protocol expected")
        protocols = {}
    for name, content in protocols.items():
        if not _NAME.fullmatch(name) or name in (*RULE_PROTOCOLS, LISTED):
            findings.append(
                f"protocols: the name {name!r} is not allowed: use letters, digits and _, and none "
                f"of {[*RULE_PROTOCOLS, LISTED]}"
            )
        elif not isinstance(content, dict) or "galleries" not in content:
            findings.append(f"protocols: {name} is {describe(content)}; galleries are expected")
        else:
            found[name] = content
    if found and not queries:
        findings.append("there are galleries but no queries, which they belong to")
        return {}
    ids = queries["query_ids"].tolist() if queries else []
    return {
        name: _parse_gallery(
            "galleries" if name == LISTED else f"protocols.{name}", content, ids, row_of, findings
        )
        for name, content in found.items()
    }


def _parse_gallery(
    where: str, content: dict, query_ids: list[int], row_of: dict, findings: list[str]
) -> GalleryTable:
    rows = content["galleries"]
    if not isinstance(rows, list) or len(rows) != len(query_ids):
        state = f"a list of {len(rows)}" if isinstance(rows, list) else describe(rows)
        findings.append(
            f"{where} is {state}; {len(query_ids)} lists of image ids, one per query, are expected"
        )
        rows = [None] * len(query_ids)
    known = row_of.keys()
    clean = []
    for index, row in enumerate(rows):
        if row is not None and (type(row) is not list or not set(map(type, row)) <= {int}):
            findings.append(f"{where}[{index}] is {describe(row)}; a list of image ids is expected")
            row = []
        if row is not None and not known >= set(row):
            strange = [image_id for image_id in row if image_id not in row_of]
            findings.append(f"{where}[{index}]: {describe(strange)} are not among the images")
            row = [image_id for image_id in row if image_id in row_of]
        clean.append(row)
    gallery = np.full((len(clean), max((len(row or ()) for row in clean), default=0)), -1, np.int32)
    for index, row in enumerate(clean):
        gallery[index, : len(row or ())] = row or ()
    takes_part = np.array([row is not None for row in clean], bool)
    if content.get("matches") is None:
        return GalleryTable(gallery, takes_part)
    matches = Section(f"{where}.matches", content["matches"], findings)
    index_of = {query_id: index for index, query_id in enumerate(query_ids)}
    wanted = matches.ids("query_id", unique=False).tolist()
    for row, query_id in enumerate(wanted):
        if query_id >= 0 and query_id not in index_of:
            matches.add(row, f"query_id {query_id} is not among the queries")
    indices = np.array([index_of.get(query_id, -1) for query_id in wanted], np.int32)
    images = matches.ids("image_id", unique=False).astype(np.int32)
    for row, (index, image_id) in enumerate(zip(indices, images, strict=True)):
        if index >= 0 and image_id >= 0 and image_id not in gallery[index]:
            matches.add(row, f"image_id {image_id} is not in the gallery of the query")
    return GalleryTable(gallery, takes_part, indices, images, matches.boxes())
