# SPDX-License-Identifier: Apache-2.0
"""Writes data set records and protocols as an annotation file (COCO-style JSON).

Reading the file returns exactly what was written: boxes bit for bit, and identities by the list
``persons``, which also keeps identities without a box.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from person_search.data.datasets.annotations import RULE_PROTOCOLS
from person_search.schema import PERSON_CATEGORY_ID, UNLABELED_PID, SearchProtocol
from person_search.utils.files import write_atomically

_LISTS = ("persons", "images", "annotations", "queries")
_CATEGORY = PERSON_CATEGORY_ID + 1  # COCO counts categories from 1


def make_document(
    records: Sequence[dict],
    image_root: str | Path,
    persons: int | Sequence[int | str],
    protocols: Sequence[SearchProtocol] = (),
    description: str = "",
) -> dict:
    """Creates the object of an annotation file.

    Args:
        records: Records with XYXY boxes; an identity is the position in ``persons``.
        image_root: Folder to which file names are relative; files elsewhere stay absolute.
        persons: Names of the identities, or their number.
        protocols: Protocols of these records, the default one first. ``all`` and ``multi_view``
            follow from the images, so only their queries are written.
        description: Origin of the data.

    Raises:
        ValueError: If another protocol has no galleries.
    """
    names = list(range(persons)) if isinstance(persons, int) else list(persons)
    document: dict = {
        "info": {"description": description},
        "categories": [{"id": _CATEGORY, "name": "person"}],
        "persons": [{"id": name} for name in names],
        "images": [_image_entry(record, image_root) for record in records],
        "annotations": list(_annotation_entries(records, names)),
    }
    if protocols:
        queries = list({q.query_id: q for one in protocols for q in one.queries}.values())
        document["queries"] = [
            {
                "id": query.query_id,
                "image_id": query.image_id,
                "bbox": xyxy_to_xywh(query.box),
                "person_id": names[query.person_id],
            }
            for query in queries
        ]
    listed = [protocol for protocol in protocols if protocol.name not in RULE_PROTOCOLS]
    if listed:
        # (image id, identity) -> first box, which the reader takes as the match
        held: dict[tuple[int, int], list[float]] = {}
        for record in records:
            for annotation in record["annotations"]:
                key = (record["image_id"], annotation["person_id"])
                held.setdefault(key, annotation["bbox"])
        document["protocols"] = {
            protocol.name: _protocol_entry(protocol, [q.query_id for q in queries], held)
            for protocol in listed
        }
    return document


def _image_entry(record: dict, image_root: str | Path) -> dict:
    root, name = os.path.abspath(image_root), os.path.abspath(record["file_name"])
    below = os.path.relpath(name, root)
    entry = {
        "id": record["image_id"],
        "file_name": Path(name if below.startswith("..") else below).as_posix(),
    }
    if record["height"]:
        entry |= {"width": record["width"], "height": record["height"]}
    return entry if record["cam_id"] is None else entry | {"cam_id": record["cam_id"]}


def _annotation_entries(records: Sequence[dict], names: list) -> Iterator[dict]:
    number = 0
    for record in records:
        for annotation in record["annotations"]:
            pid = annotation["person_id"]
            yield {
                "id": number,
                "image_id": record["image_id"],
                "category_id": _CATEGORY,
                "bbox": xyxy_to_xywh(annotation["bbox"]),
                "person_id": None if pid == UNLABELED_PID else names[pid],
            }
            number += 1


def xyxy_to_xywh(box: Sequence[float]) -> list[float]:
    """Returns x, y, width, height such that ``x + width`` and ``y + height`` are exactly x2 and y2.

    A rounded difference may not add up exactly; then the neighboring number that does is used.
    """
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, _exact_difference(x1, x2), _exact_difference(y1, y2)]


def _exact_difference(low: float, high: float) -> float:
    difference = high - low
    for candidate in (
        difference,
        np.nextafter(difference, np.inf),
        np.nextafter(difference, -np.inf),
    ):
        if low + float(candidate) == high:
            return float(candidate)
    return difference


def _protocol_entry(protocol: SearchProtocol, query_ids: list[int], held: Mapping) -> dict:
    """Returns the galleries, and the matches if the reader would not find them by itself."""
    if protocol.gallery is None:
        raise ValueError(
            f"protocol '{protocol.name}' has no galleries; without galleries a file can contain "
            f"only {list(RULE_PROTOCOLS)}"
        )
    rows = [row[row >= 0].tolist() for row in protocol.gallery]
    row_of = {query.query_id: row for query, row in zip(protocol.queries, rows, strict=True)}
    entry: dict = {"galleries": [row_of.get(query_id) for query_id in query_ids]}
    expected = [
        (index, image_id, tuple(np.array(held[image_id, query.person_id], np.float32).tolist()))
        for index, (query, row) in enumerate(zip(protocol.queries, rows, strict=True))
        for image_id in row
        if (image_id, query.person_id) in held
    ]
    stated = [
        (index, image_id, tuple(box))
        for index, image_id, box in zip(
            protocol.positive_query.tolist(),
            protocol.positive_image.tolist(),
            protocol.positive_box.tolist(),
            strict=True,
        )
    ]
    if stated != expected:
        entry["matches"] = [
            {
                "query_id": protocol.queries[index].query_id,
                "image_id": image_id,
                "bbox": xyxy_to_xywh(box),
            }
            for index, image_id, box in stated
        ]
    return entry


def write_document(path: str | Path, document: Mapping) -> None:
    """Writes an annotation file atomically, one entry per line.

    Raises:
        OSError: If the file cannot be written.
    """

    def lines() -> Iterator[str]:
        opening = "{"
        for key, value in document.items():
            yield f"{opening}\n{json.dumps(key)}: "
            if key in _LISTS and value:
                entries = (json.dumps(entry) for entry in value)
                yield "[\n" + next(entries)
                for entry in entries:
                    yield ",\n" + entry
                yield "\n]"
            else:
                yield json.dumps(value)
            opening = ","
        yield "\n}\n"

    write_atomically(path, lambda file: file.writelines(line.encode() for line in lines()))
