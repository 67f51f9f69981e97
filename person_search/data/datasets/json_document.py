# SPDX-License-Identifier: Apache-2.0
"""Parses an annotation file (COCO-style JSON) into an annotation table and reports all its faults.

``docs/adding_a_dataset.md`` describes the format. A *finding* is one sentence about one fault.
Functions collect findings and continue with a harmless value in place of the wrong one, so the
result is only valid if there are no findings.

Shape shorthand: N entries of a list, B annotations.
"""

import json
import posixpath
import re
import reprlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from person_search.data.datasets.annotations import (
    CROWD,
    LISTED,
    NO_CAMERA,
    OTHER_CATEGORY,
    RULE_PROTOCOLS,
    AnnotationTable,
    GalleryTable,
)
from person_search.data.datasets.common import pad_rows, xywh_to_xyxy
from person_search.schema import UNLABELED_PID
from person_search.utils.model_card import KINDS

_MAX_ID = 2**31 - 1  # ids of images and queries fill int32 arrays
_NAME = re.compile(r"[A-Za-z0-9_]+")
PERSON_CATEGORIES = ("person", "pedestrian", "people", "persons", "pedestrians")
IDENTITY_ATTRIBUTES = re.compile(r"(person|track|pid|identity|id)([_ -]?(id|no|number))?", re.I)
_MAX_SHOWN = 10


class AnnotationFileError(ValueError):
    """An annotation file has faults.

    Attributes:
        path: Annotation file.
        findings: All faults; the message shows the first ten.
    """

    def __init__(self, path: Path, findings: Sequence[str]):
        self.path, self.findings = path, list(findings)
        lines = [f"{path} has {len(findings)} fault{'s' * (len(findings) > 1)}:"]
        lines += [f"  {finding}" for finding in findings[:_MAX_SHOWN]]
        if len(findings) > _MAX_SHOWN:
            lines.append(
                f"  ... and {len(findings) - _MAX_SHOWN} more; "
                f"tools/check_dataset.py {path} lists all"
            )
        super().__init__("\n".join(lines))


def parse_json(path: Path) -> Any:
    """Reads the value in a JSON file.

    Raises:
        FileNotFoundError: If the file does not exist.
        AnnotationFileError: If it is empty, not UTF-8, or not JSON (with line and column).
    """
    if not path.exists():
        raise FileNotFoundError(
            f"the annotation file {path} does not exist (absolute path: {path.absolute()})"
        )
    if not path.is_file():
        raise AnnotationFileError(path, ["is a folder; the name of a JSON file is expected"])
    content = path.read_bytes()
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        hint = ""
        if content.startswith(b"\x1f\x8b"):
            hint = "; it is compressed with gzip: unpack it first"
        elif content.startswith((b"\xff\xfe", b"\xfe\xff")):
            hint = "; it is UTF-16: save it as UTF-8"
        raise AnnotationFileError(path, [f"the file is not UTF-8 text ({e}){hint}"]) from e
    except json.JSONDecodeError as e:
        if not content.strip():
            raise AnnotationFileError(path, [f"the file is empty ({len(content)} bytes)"]) from e
        hint = ""
        if content.startswith(b"version https://git-lfs"):
            hint = "; it is a pointer of Git LFS: fetch the file with git lfs pull"
        elif e.pos >= len(e.doc.rstrip()) or e.msg.startswith("Unterminated string"):
            hint = "; the file is truncated: copy it again"
        place = f"line {e.lineno}, column {e.colno}"
        raise AnnotationFileError(path, [f"the file is not JSON: {e.msg}, {place}{hint}"]) from e
    except RecursionError as e:
        raise AnnotationFileError(path, ["lists or objects are nested too deeply"]) from e
    except ValueError as e:  # an integer of thousands of digits
        raise AnnotationFileError(path, [str(e)]) from e


def read_json(path: Path) -> dict:
    """Reads the object in a JSON file.

    Raises:
        FileNotFoundError: If the file does not exist.
        AnnotationFileError: If it is not JSON, see :func:`parse_json`, or not an object.
    """
    document = parse_json(path)
    if not isinstance(document, dict):
        raise AnnotationFileError(
            path,
            [
                f"the file contains {describe(document)}; an object with the lists images and "
                "annotations is expected (export it in COCO format)"
            ],
        )
    return document


def describe(value: Any) -> str:
    """Returns a short text of a value for a message."""
    if value is None:
        return "null"
    if isinstance(value, dict | list) and len(value) > 8:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    return reprlib.repr(value)


def identity_hint(document: dict) -> str:
    """Returns a sentence about identities stored under ``attributes``, or an empty text.

    CVAT, among others, exports ``person_id`` in the ``attributes`` of an annotation.
    """
    entries = document.get("annotations")
    for row, entry in enumerate(entries if isinstance(entries, list) else ()):
        attributes = entry.get("attributes") if isinstance(entry, dict) else None
        if isinstance(attributes, dict):
            keys = [key for key in attributes if IDENTITY_ATTRIBUTES.fullmatch(key)]
            if keys:
                return (
                    f"annotations[{row}].attributes has {keys[0]!r} (exported by CVAT and others): "
                    f"copy it to the person_id of each annotation itself"
                )
    return ""


class _Section:
    """Reads the entries of one list of a document column by column.

    Args:
        name: Key of the list, for the findings.
        entries: Value of the key.
        findings: Receives the findings.
    """

    def __init__(self, name: str, entries: Any, findings: list[str]):
        self.name, self.findings = name, findings
        if not isinstance(entries, list):
            findings.append(f"{name} is {describe(entries)}; a list of objects is expected")
            entries = []
        if not set(map(type, entries)) <= {dict}:
            for row, entry in enumerate(entries):
                if type(entry) is not dict:
                    self.add(row, f"is {describe(entry)}; an object is expected")
            entries = [entry if type(entry) is dict else {} for entry in entries]
        self.entries: list[dict] = entries

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, row: int, text: str) -> None:
        """Adds a finding about one entry."""
        self.findings.append(f"{self.name}[{row}]: {text}")

    def column(self, key: str, kinds: set[type], expected: str, default: Any) -> list:
        """Returns the values of a key; None stands for an absent one.

        Args:
            key: Key of the entries.
            kinds: Allowed types (``bool`` is not an ``int``); ``NoneType`` makes it optional.
            expected: Description of the allowed types.
            default: Replaces a value of another type.
        """
        values = [entry.get(key) for entry in self.entries]
        if not set(map(type, values)) <= kinds:
            for row, value in enumerate(values):
                if type(value) not in kinds:
                    state = "is absent" if value is None else f"is {describe(value)}"
                    self.add(row, f"{key} {state}; {expected} is expected")
                    values[row] = default
        return values

    def ids(
        self,
        key: str = "id",
        optional: bool = False,
        unique: bool = True,
        maximum: int = _MAX_ID,
    ) -> np.ndarray:
        """Returns (N,) int64 ids; -1 for an absent or wrong one."""
        kinds: set[type] = {int, NoneType} if optional else {int}
        values = self.column(key, kinds, "an integer >= 0", None)
        for row, value in enumerate(values):
            if value is not None and not 0 <= value <= maximum:
                self.add(row, f"{key} is {value}; allowed: 0 to {maximum}")
                values[row] = None
        array = np.array([-1 if value is None else value for value in values], np.int64)
        if unique:
            self.duplicates(key, array[array >= 0].tolist(), np.flatnonzero(array >= 0).tolist())
        return array

    def duplicates(self, key: str, values: list, rows: list[int] | None = None) -> None:
        """Adds a finding for each repeated value."""
        if len(set(values)) == len(values):
            return
        first: dict[Any, int] = {}
        for row, value in zip(rows or range(len(values)), values, strict=True):
            if value in first:
                self.add(row, f"{key} {value!r} is already used by {self.name}[{first[value]}]")
            first.setdefault(value, row)

    def boxes(self, optional: bool = False) -> np.ndarray:
        """Returns (N, 4) float64 XYXY of the entries' ``bbox``; NaN for an absent or wrong one."""
        values: list[Any] = [entry.get("bbox") for entry in self.entries]
        plain = set(map(type, values)) <= {list} and set(map(len, values)) <= {4}
        if plain and set(map(type, chain.from_iterable(values))) <= {int, float}:
            try:
                array = np.array(values, np.float64).reshape(-1, 4)
            except OverflowError:  # an integer larger than any float; reported below
                array = np.full((1, 4), np.nan)
            if np.isfinite(array).all() and (np.abs(array) <= 1e15).all():
                return xywh_to_xyxy(array)
        rows: list[list[float]] = []
        for row, value in enumerate(values):
            fault = None if value is None and optional else _box_fault(value)
            if fault:
                self.add(row, f"bbox {fault}; four numbers [x, y, width, height] are expected")
            rows.append([np.nan] * 4 if fault or value is None else value)
        return xywh_to_xyxy(np.array(rows, np.float64))


def _box_fault(value: Any) -> str | None:
    if value is None:
        return "is absent"
    if type(value) is not list or len(value) != 4:
        return f"is {describe(value)}"
    if not set(map(type, value)) <= {int, float} or max(map(abs, value)) > 1e15:
        return f"is {describe(value)}"
    # nan passes the comparison above
    return None if all(np.isfinite(value)) else f"is {describe(value)}, which is not finite"


def parse_document(document: dict) -> tuple[AnnotationTable, list[str]]:
    """Parses the object of an annotation file.

    Returns:
        The table, and one sentence for each fault; the table is only valid without faults. Whether
        boxes lie inside their images is not checked here, because image sizes may not be known yet.
    """
    findings: list[str] = []
    for key in ("images", "annotations"):
        if key not in document:
            findings.append(f"the key {key!r} is absent; the file has {sorted(document)}")
    if document.get("kind") not in (None, *KINDS):
        findings.append(f"kind is {describe(document['kind'])}; allowed: {', '.join(KINDS)}")
    images = _Section("images", document.get("images", []), findings)
    annotations = _Section("annotations", document.get("annotations", []), findings)
    if "images" in document and not images.entries and not findings:
        findings.append("images is an empty list; at least one image is expected")
    columns = _parse_images(images)
    row_of = {image_id: row for row, image_id in enumerate(columns["image_ids"].tolist())}

    raw_pids = annotations.column(
        "person_id", {int, str, NoneType}, "an integer, a name, or null (unlabeled)", None
    )
    for row, value in enumerate(raw_pids):
        if value == UNLABELED_PID:
            raw_pids[row] = None
        elif value == "" or (type(value) is int and value < 0):
            annotations.add(
                row, f"person_id is {value!r}; use null or -1 for a person without identity"
            )
            raw_pids[row] = None
    label_of, num_pids = _number_persons(document, raw_pids, findings)
    for row, pid in enumerate(raw_pids):
        if pid is not None and pid not in label_of:
            annotations.add(row, f"person_id {pid!r} is not among the persons")
    columns["labels"] = np.array([label_of.get(pid, UNLABELED_PID) for pid in raw_pids], np.int32)

    columns["boxes"] = annotations.boxes()
    image_ids = annotations.ids("image_id", unique=False).tolist()
    columns["box_image"] = np.array([row_of.get(i, -1) for i in image_ids], np.int32)
    for row in np.flatnonzero(columns["box_image"] < 0).tolist():
        if image_ids[row] >= 0:
            annotations.add(row, f"image_id {image_ids[row]} is not among the images")
    columns["left_out"] = _left_out(document, annotations, findings)

    queries = _parse_queries(document, annotations, columns, row_of, label_of, findings)
    galleries = _parse_galleries(document, queries, row_of, findings)
    table = AnnotationTable(**columns, num_pids=num_pids, **queries, galleries=galleries)
    return table, findings


def _parse_images(images: _Section) -> dict[str, Any]:
    ids = images.ids()
    names = images.column("file_name", {str}, "the name of a file", "")
    for row, (entry, name) in enumerate(zip(images.entries, names, strict=True)):
        if type(entry.get("file_name")) is str and not _is_file_name(name):
            images.add(row, f"file_name is {name!r}; the name of a file is expected")
            names[row] = ""
    plain = [posixpath.normpath(name) if name.strip() else name for name in names]
    rows = [row for row, name in enumerate(plain) if name.strip()]
    images.duplicates("file_name", [plain[row] for row in rows], rows)
    optional: set[type] = {int, NoneType}
    sizes = np.zeros((len(images), 2), np.int64)
    for place, key in enumerate(("height", "width")):
        values = images.column(key, optional, "an integer number of pixels", 1)
        for row, value in enumerate(values):
            if value is not None and not 0 < value < 2**31:
                images.add(row, f"{key} is {value}; an image has at least one pixel")
                values[row] = 1
        sizes[:, place] = [value or 0 for value in values]
    sizes[(sizes == 0).any(axis=1)] = 0
    cams = images.column("cam_id", optional, "an integer (number the cameras) or null", None)
    for row, cam in enumerate(cams):
        if cam is not None and not 0 <= cam < 2**31:
            images.add(row, f"cam_id is {cam}; an integer >= 0 or null is expected")
            cams[row] = None
    cam_ids = np.array([NO_CAMERA if cam is None else cam for cam in cams], np.int64)
    return {"image_ids": ids, "names": plain, "sizes": sizes, "cam_ids": cam_ids}


def _is_file_name(name: str) -> bool:
    try:
        return bool(name.strip()) and b"\0" not in name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _number_persons(
    document: dict, raw_pids: list, findings: list[str]
) -> tuple[dict[int | str, int], int]:
    """Returns identity -> 0, 1, ... in the order of ``persons`` or sorted, and their number."""
    if document.get("persons") is not None:
        persons = _Section("persons", document["persons"], findings)
        ids = persons.column("id", {int, str}, "an integer or a name", None)
        persons.duplicates("id", [value for value in ids if value is not None])
        return {value: row for row, value in enumerate(ids) if value is not None}, len(ids)
    names = set(raw_pids) - {None}
    if len({type(name) for name in names}) > 1:
        number = next(name for name in names if type(name) is int)
        text = next(name for name in names if type(name) is str)
        findings.append(
            f"annotations: some person_id are numbers ({number}), others text ({text!r}); "
            "use one type for all"
        )
        return dict.fromkeys(names, 0), len(names)
    return {name: label for label, name in enumerate(sorted(names))}, len(names)


def _left_out(document: dict, annotations: _Section, findings: list[str]) -> np.ndarray:
    """Returns (B,) values of ``AnnotationTable.left_out``: crowds and other categories."""
    left_out = np.zeros(len(annotations), np.uint8)
    categories = _Section("categories", document.get("categories") or [], findings)
    ids = categories.ids()
    names = categories.column("name", {str}, "text", "")
    if len(ids):
        persons = {
            int(i)
            for i, name in zip(ids, names, strict=True)
            if name.strip().lower() in PERSON_CATEGORIES
        }
        if not persons and len(ids) > 1:
            findings.append(
                f"categories: none of {names} is 'person' (or "
                f"{', '.join(PERSON_CATEGORIES[1:])}); rename the category of the persons"
            )
        persons = persons or {int(ids[0])}
        # a single category may be omitted in the annotations
        chosen = annotations.ids("category_id", optional=len(ids) == 1, unique=False).tolist()
        known = set(ids.tolist()) | {-1}
        for row, category in enumerate(chosen):
            if category not in known:
                annotations.add(row, f"category_id {category} is not among the categories")
        left_out[[category not in persons | {-1} for category in chosen]] = OTHER_CATEGORY
    crowd = annotations.column("iscrowd", {int, bool, NoneType}, "0 or 1", 0)
    left_out[[bool(value) for value in crowd]] = CROWD
    return left_out


def _parse_queries(
    document: dict,
    annotations: _Section,
    columns: dict[str, np.ndarray],
    row_of: dict[int, int],
    label_of: dict,
    findings: list[str],
) -> dict[str, Any]:
    """Returns query_ids, query_image, query_boxes and query_pids; empty without ``queries``."""
    annotation_ids = np.zeros(0, np.int64)
    if any("id" in entry for entry in annotations.entries):
        annotation_ids = annotations.ids(optional=True, maximum=2**63 - 1)  # crowds of COCO
    if document.get("queries") is None:
        return {}
    queries = _Section("queries", document["queries"], findings)
    given_ids = queries.ids(optional=True)
    if (given_ids < 0).any() and (given_ids >= 0).any():
        findings.append("queries: give all of them an id, or none")
    references = queries.ids("annotation_id", optional=True, unique=False, maximum=2**63 - 1)
    annotation_row = {i: row for row, i in enumerate(annotation_ids.tolist()) if i >= 0}
    boxes = queries.boxes(optional=True)
    images = np.full(len(queries), -1, np.int32)
    pids = np.full(len(queries), UNLABELED_PID, np.int32)
    for row, entry in enumerate(queries.entries):
        if entry.get("annotation_id") is None:
            image_id, pid = entry.get("image_id"), entry.get("person_id")
            has_box = entry.get("bbox") is not None
            if not has_box:
                queries.add(row, "neither annotation_id nor image_id, bbox and person_id is given")
            if type(image_id) is int and image_id in row_of:
                images[row] = row_of[image_id]
            elif has_box:
                queries.add(row, f"image_id {describe(image_id)} is not among the images")
            if type(pid) in (int, str) and pid in label_of:
                pids[row] = label_of[pid]
            elif has_box:
                queries.add(row, f"person_id {describe(pid)} is not that of any annotation")
            continue
        if {"image_id", "bbox", "person_id"} & entry.keys():
            queries.add(row, "give annotation_id, or image_id, bbox and person_id, but not both")
        source = annotation_row.get(int(references[row]))
        if source is None:
            if references[row] >= 0:
                queries.add(row, f"annotation_id {references[row]} is not among the annotations")
            continue
        images[row], pids[row] = columns["box_image"][source], columns["labels"][source]
        boxes[row] = columns["boxes"][source]
        if pids[row] == UNLABELED_PID:
            queries.add(row, f"annotation_id {references[row]} has no person_id to search for")
    return {
        "query_ids": np.where(given_ids < 0, np.arange(len(queries)), given_ids),
        "query_image": images,
        "query_boxes": boxes,
        "query_pids": pids,
    }


def _parse_galleries(
    document: dict, queries: dict, row_of: dict[int, int], findings: list[str]
) -> dict[str, GalleryTable]:
    """Returns the listed protocols, that of ``galleries`` first."""
    found: dict[str, dict] = {}
    if document.get("galleries") is not None:
        found[LISTED] = {"galleries": document["galleries"]}
    protocols = document.get("protocols") or {}
    if not isinstance(protocols, dict):
        findings.append(
            f"protocols is {describe(protocols)}; an object from name to protocol is expected"
        )
        protocols = {}
    for name, content in protocols.items():
        if not _NAME.fullmatch(name) or name in (*RULE_PROTOCOLS, LISTED):
            findings.append(
                f"protocols: the name {name!r} is not allowed; use letters, digits and _, and none "
                f"of {[*RULE_PROTOCOLS, LISTED]}"
            )
        elif not isinstance(content, dict) or "galleries" not in content:
            findings.append(f"protocols: {name} is {describe(content)}; galleries are expected")
        else:
            found[name] = content
    if found and not queries:
        findings.append("the file has galleries but no queries")
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
    clean = []
    for index, row in enumerate(rows):
        if row is not None and (type(row) is not list or not set(map(type, row)) <= {int}):
            findings.append(f"{where}[{index}] is {describe(row)}; a list of image ids is expected")
            row = []
        if row is not None and not row_of.keys() >= set(row):
            strange = [image_id for image_id in row if image_id not in row_of]
            findings.append(f"{where}[{index}]: {describe(strange)} are not among the images")
            row = [image_id for image_id in row if image_id in row_of]
        clean.append(row)
    gallery = pad_rows([row or () for row in clean])
    takes_part = np.array([row is not None for row in clean], bool)
    if content.get("matches") is None:
        return GalleryTable(gallery, takes_part)
    matches = _Section(f"{where}.matches", content["matches"], findings)
    index_of = {query_id: index for index, query_id in enumerate(query_ids)}
    wanted = matches.ids("query_id", unique=False).tolist()
    indices = np.array([index_of.get(query_id, -1) for query_id in wanted], np.int32)
    images = matches.ids("image_id", unique=False).astype(np.int32)
    for row, (query_id, index, image_id) in enumerate(zip(wanted, indices, images, strict=True)):
        if query_id >= 0 and index < 0:
            matches.add(row, f"query_id {query_id} is not among the queries")
        elif index >= 0 and image_id >= 0 and image_id not in gallery[index]:
            matches.add(row, f"image_id {image_id} is not in the gallery of the query")
    return GalleryTable(gallery, takes_part, indices, images, matches.boxes())
