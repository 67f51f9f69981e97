# SPDX-License-Identifier: Apache-2.0
"""Checks an annotation file (COCO-style JSON) and its images: all faults at once."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from person_search.data.datasets.check import (
    CheckReport,
    Count,
    look_at_images,
    protocol_errors,
)
from person_search.data.datasets.common import IrregularityLog
from person_search.data.datasets.json_boxes import box_faults, log_irregular_boxes, usable_boxes
from person_search.data.datasets.json_columns import AnnotationFileError, read_json
from person_search.data.datasets.json_document import parse_document
from person_search.data.datasets.json_protocols import (
    count_images,
    load_json_protocol,
    protocol_names,
)
from person_search.data.datasets.json_records import image_paths
from person_search.data.datasets.json_tables import FAULTY, AnnotationTables
from person_search.schema import UNLABELED_PID, SearchProtocol


def check_json_dataset(
    json_file: str | Path, image_root: str | Path | None = None, decode: bool = False
) -> CheckReport:
    """Reads an annotation file and looks at all its images.

    Args:
        json_file: the file.
        image_root: folder that the file names start from; None: that of ``json_file``.
        decode: also decode every image.

    Returns:
        The report. A file that is no JSON at all gives one error and no counts.
    """
    path = Path(json_file)
    root = path.parent if image_root is None else Path(image_root)
    report = CheckReport("Own data", path)
    try:
        document = read_json(path)
    except AnnotationFileError as e:
        report.errors += [f"{path}: {finding}" for finding in e.findings]
        return report
    except OSError as e:
        report.errors.append(str(e))
        return report
    tables, findings = parse_document(document)
    if not tables.names:
        report.errors += [f"{path}: {finding}" for finding in findings]
        return report
    sound = not findings
    if not sound:
        tables = _set_faulty_apart(tables)
    sizes = _look_at_all(tables, root, decode, report, findings)
    findings += box_faults(tables, sizes)
    log_irregular_boxes(tables, sizes, str(path), report.irregularities)
    report.errors[:0] = [f"{path}: {finding}" for finding in findings]
    counts = _count(tables)
    if sound:
        counts |= _check_protocols(path, tables, report)
    report.counts = [Count(what, number, None) for what, number in counts.items()]
    return report


def _set_faulty_apart(tables: AnnotationTables) -> AnnotationTables:
    """Marks annotations that were found to be wrong, so that the others can be looked at."""
    wrong = (tables.box_image < 0) | ~np.isfinite(tables.boxes).all(axis=1)
    return replace(
        tables,
        left_out=np.where(wrong, np.uint8(FAULTY), tables.left_out),
        box_image=np.maximum(tables.box_image, 0),
        boxes=np.nan_to_num(tables.boxes),
        query_ids=None,
        query_image=None,
        query_boxes=None,
        query_pids=None,
        galleries={},
    )


def _look_at_all(
    tables: AnnotationTables, root: Path, decode: bool, report: CheckReport, findings: list[str]
) -> np.ndarray:
    """Looks at the images; returns (I, 2) their sizes, or else those of the file."""
    named = [row for row, name in enumerate(tables.names) if name.strip()]
    paths = image_paths(tables, root)
    states, errors = look_at_images([paths[row] for row in named], decode, report.irregularities)
    report.errors += errors
    sizes = tables.sizes.copy()
    for row, state in zip(named, states, strict=True):
        said, real = tuple(sizes[row].tolist()), state.size
        if real[0]:
            sizes[row] = real
        if not real[0] or not said[0] or said == real:
            continue
        hint = ""
        if "exif_turned" in state.oddities and said == real[::-1]:
            hint = (
                "; the image is stored lying and shown turned (EXIF orientation): sizes and "
                "boxes must be those of the image as it is shown"
            )
        findings.append(
            f"images[{row}]: {tables.names[row]} is {real[1]} x {real[0]} (width x height), but "
            f"the file says {said[1]} x {said[0]}{hint}"
        )
    return sizes


def _count(tables: AnnotationTables) -> dict[str, int]:
    usable = usable_boxes(tables)
    labeled = usable & (tables.labels != UNLABELED_PID)
    images_of = count_images(tables, np.flatnonzero(labeled))
    return {
        "images": len(tables.names),
        "cameras": len(np.unique(tables.cam_ids[tables.has_camera])),
        "boxes": int(usable.sum()),
        "boxes left out": int((~usable).sum()),
        "boxes with identity": int(labeled.sum()),
        "images with identity": len(np.unique(tables.box_image[labeled])),
        "identities": tables.num_pids,
        "identities in several images": int((images_of > 1).sum()),
    }


def _check_protocols(path: Path, tables: AnnotationTables, report: CheckReport) -> dict[str, int]:
    """Fills irregularities and errors of the report; returns the counts."""
    counts: dict[str, int] = {}
    for name in protocol_names(tables):
        try:
            protocol = load_json_protocol(path, name)
        except ValueError as e:
            report.errors.append(str(e))
            continue
        counts.setdefault("queries", len(protocol.queries))
        counts[f"queries of {name}"] = len(protocol.queries)
        counts[f"matches in {name}"] = len(protocol.positive_query)
        report.errors += protocol_errors(path, protocol)
        if protocol.gallery is not None:
            _log_galleries(path, protocol, protocol.gallery, tables, report.irregularities)
    return counts


def _log_galleries(
    path: Path,
    protocol: SearchProtocol,
    gallery: np.ndarray,
    tables: AnnotationTables,
    log: IrregularityLog,
) -> None:
    """Reports galleries that list an image twice or hold the query's own image."""
    name_of = dict(zip(tables.image_ids.tolist(), tables.names, strict=True))
    for query, row in zip(protocol.queries, gallery, strict=True):
        where = f"{path}: {protocol.name}, query {query.query_id}"
        listed = Counter(row[row >= 0].tolist())
        for image_id in [image_id for image_id, times in listed.items() if times > 1]:
            log.add("listed_twice", where, name_of[image_id])
        if query.image_id in listed:
            log.add("own_image", where, name_of[query.image_id])
