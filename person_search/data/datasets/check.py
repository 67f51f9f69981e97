# SPDX-License-Identifier: Apache-2.0
"""Checks a data set: counts beside the published ones, every irregularity and every error.

*Irregularities* are oddities that the readers cope with, *errors* make a data set unfit for use.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from person_search.data.datasets.annotations import FAULTY, AnnotationTable
from person_search.data.datasets.common import DatasetLayout, IrregularityLog
from person_search.data.datasets.cuhk_sysu import load_cuhk_sysu, load_cuhk_sysu_protocol
from person_search.data.datasets.cuhk_sysu_check import check_subsets, readable_subsets
from person_search.data.datasets.cuhk_sysu_files import (
    CUHK_SYSU_LAYOUT,
    SUBSETS,
    existing_protocols,
    protocol_path,
    reference_protocol,
)
from person_search.data.datasets.cuhk_sysu_files import count_train_pids as count_cuhk_sysu_pids
from person_search.data.datasets.json_dataset import (
    box_faults,
    image_paths,
    load_json_protocol,
    log_irregularities,
)
from person_search.data.datasets.json_document import (
    AnnotationFileError,
    identity_hint,
    parse_document,
    read_json,
)
from person_search.data.datasets.protocols import log_galleries, protocol_names
from person_search.data.datasets.prw import (
    PRW_LAYOUT,
    PRW_PROTOCOLS,
    QUERY_FILE,
    count_prw_pids,
    load_prw,
    load_prw_protocol,
)
from person_search.data.image_io import ImageState, look_at_image
from person_search.schema import UNLABELED_PID, SearchProtocol, record_problems

SYNTHETIC_MARK = "synthetic.json"
"""File in the root of a synthetic data set, which is not compared with published counts."""

_DROPPED = ("zero_size_box", "box_outside")


@dataclass(frozen=True)
class Count:
    """One count of a data set.

    Attributes:
        what: Description of the count.
        found: Count in this copy of the data set.
        published: Count in the original data set, if known.
    """

    what: str
    found: int
    published: int | None

    @property
    def differs(self) -> bool:
        """Whether the count differs from the published one."""
        return self.published is not None and self.found != self.published


@dataclass
class CheckReport:
    """Result of checking a data set.

    Attributes:
        title: Name of the data set.
        root: Its folder, or its annotation file.
        counts: All counts in order.
        irregularities: Oddities that the readers cope with.
        errors: What makes the data set unfit for use.
        notes: Remarks on optional parts, and advice.
        uses: What the data set can be used for; empty if there are errors.
    """

    title: str
    root: Path
    counts: list[Count] = field(default_factory=list)
    irregularities: IrregularityLog = field(default_factory=IrregularityLog)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    uses: list[str] = field(default_factory=list)

    @property
    def found(self) -> dict[str, int]:
        """Counts by description."""
        return {count.what: count.found for count in self.counts}


@dataclass(frozen=True)
class DatasetFormat:
    """How to read a data set of one format, and the published counts of the original.

    Attributes:
        layout: Folder layout, for messages.
        load: Loads a split.
        protocols: Returns the names of the protocols in a root.
        load_protocol: Loads a protocol.
        protocol_file: Returns the file of a protocol, for messages.
        count_train_pids: Returns the number of training identities.
        box_tolerance: Pixels by which boxes may exceed the image; infinite if the reader reports
            them as irregularities.
        published: Published counts.
        check_more: Checks specific to the format; returns notes and errors.
    """

    layout: DatasetLayout
    load: Callable[[Path, str, IrregularityLog], list[dict]]
    protocols: Callable[[Path], list[str]]
    load_protocol: Callable[[Path, str, IrregularityLog], SearchProtocol]
    protocol_file: Callable[[Path, str], Path]
    count_train_pids: Callable[[Path], int]
    box_tolerance: float
    published: dict[str, int]
    check_more: Callable[[Path, IrregularityLog], tuple[list[str], list[str]]] | None = None


def _cuhk_sysu_protocols(root: Path) -> list[str]:
    first = reference_protocol(root)
    others = [name for name in existing_protocols(root) if name != first]
    return [first, *others, *readable_subsets(root)]


def _load_cuhk_sysu(root: Path, split: str, log: IrregularityLog) -> list[dict]:
    """Loads a split without the broken subsets, which ``check_subsets`` reports."""
    subsets = readable_subsets(root) if split == "test" else None
    return load_cuhk_sysu(root, split, log, subsets=subsets)


FORMATS = {
    "cuhk_sysu": DatasetFormat(
        layout=CUHK_SYSU_LAYOUT,
        load=_load_cuhk_sysu,
        protocols=_cuhk_sysu_protocols,
        load_protocol=load_cuhk_sysu_protocol,
        protocol_file=protocol_path,
        count_train_pids=count_cuhk_sysu_pids,
        box_tolerance=math.inf,
        published={
            "images": 18184,
            "train images": 11206,
            "train boxes": 55272,
            "train identities": 5532,
            "test images": 6978,
            "test boxes": 40871,
            "queries": 2900,
            "query images": 2725,
            "matches in g100": 5447,
            "queries of occlusion": 187,
            "queries of low_resolution": 290,
        },
        check_more=check_subsets,
    ),
    "prw": DatasetFormat(
        layout=PRW_LAYOUT,
        load=load_prw,
        protocols=lambda root: list(PRW_PROTOCOLS),
        load_protocol=lambda root, name, log: load_prw_protocol(root, name),
        protocol_file=lambda root, name: root / QUERY_FILE,
        count_train_pids=count_prw_pids,
        box_tolerance=0.0,
        published={
            "images": 11816,
            "train images": 5704,
            "train boxes": 18048,
            "train boxes with identity": 14907,
            "train identities": 483,
            "test images": 6112,
            "test boxes": 25062,
            "test boxes with identity": 16344,
            "queries": 2057,
        },
    ),
}
"""Formats that can be checked, with the published counts of the original data sets."""


def check_dataset(
    format_name: str, root: Path, compare: bool | None = None, decode: bool = False
) -> CheckReport:
    """Reads a whole data set and reports on it.

    Args:
        format_name: Key of ``FORMATS``.
        root: Folder of the data set.
        compare: Whether to compare the counts with the published ones and to report differences as
            errors. Default: unless the data set is marked as synthetic.
        decode: Also decodes every image, which takes minutes but detects truncated files.
    """
    kind, root = FORMATS[format_name], Path(root)
    report = CheckReport(kind.layout.title, root)
    try:
        found = _read_all(kind, root, report, decode)
    except (ValueError, OSError) as e:
        report.errors.append(str(e))
        return report
    if compare is None:
        compare = not (root / SYNTHETIC_MARK).exists()
    published = kind.published if compare else {}
    report.counts = [Count(what, number, published.get(what)) for what, number in found.items()]
    report.errors += [
        f"{count.what}: {count.found}, but {count.published} are published"
        for count in report.counts
        if count.differs
    ]
    if not report.errors:
        report.uses += ["training"] * bool(found.get("train boxes with identity"))
        report.uses += ["evaluation"] * bool(found.get("queries"))
    return report


def _read_all(kind: DatasetFormat, root: Path, report: CheckReport, decode: bool) -> dict[str, int]:
    """Adds irregularities and errors to the report; returns all counts in order."""
    counts: dict[str, int] = {"images": 0}
    for split in ("train", "test"):
        log = IrregularityLog()
        try:
            records = kind.load(root, split, log)
        except ValueError as e:  # the other split may still be readable
            report.errors.append(str(e))
            continue
        report.irregularities += log
        report.errors += [f"{i.where}: {i.detail}" for i in log if i.kind == "unreadable_image"]
        report.errors += [
            f"{record['file_name']}: {problem}"
            for record in records
            if record["height"]
            for problem in record_problems(record, split == "test", kind.box_tolerance)
        ]
        if decode:
            files = [record["file_name"] for record in records]
            report.errors += look_at_images(files, decode, report.irregularities)[1]
        counts["images"] += len(records)
        labels = [[a["person_id"] for a in record["annotations"]] for record in records]
        labeled = [sum(pid != UNLABELED_PID for pid in pids) for pids in labels]
        dropped = sum(item.kind in _DROPPED for item in log)
        counts |= {
            f"{split} images": len(records),
            # publications count the boxes in the files, including those that a reader drops
            f"{split} boxes": sum(map(len, labels)) + dropped,
            f"{split} boxes dropped": dropped,
            f"{split} boxes with identity": sum(labeled),
            f"{split} images with identity": sum(number > 0 for number in labeled),
        }
        if split == "train":
            counts["train identities"] = kind.count_train_pids(root)
    if kind.check_more is not None:
        notes, errors = kind.check_more(root, report.irregularities)
        report.notes += notes
        report.errors += errors
    return counts | _read_protocols(kind, root, report)


def _read_protocols(kind: DatasetFormat, root: Path, report: CheckReport) -> dict[str, int]:
    """Adds irregularities and errors to the report; returns the counts of all protocols."""
    counts: dict[str, int] = {}
    first = None
    for name in kind.protocols(root):
        log = IrregularityLog()
        try:
            protocol = kind.load_protocol(root, name, log)
        except ValueError as e:
            report.errors += [] if str(e) in report.errors else [str(e)]
            continue
        report.irregularities += log
        if first is None:
            first = protocol
            counts["queries"] = len(protocol.queries)
            counts["query images"] = len({query.image_id for query in protocol.queries})
            counts["test identities"] = len({query.person_id for query in protocol.queries})
        path = kind.protocol_file(root, name)
        if name in SUBSETS:  # subsets have queries of their own
            counts[f"queries of {name}"] = len(protocol.queries)
        elif list(protocol.queries) != list(first.queries):
            report.errors.append(f"{path}: {name} has other queries than {first.name}")
        counts[f"matches in {name}"] = len(protocol.positive_query)
        report.errors += _unmatched_queries(path, protocol)
    return counts


def _unmatched_queries(path: Path, protocol: SearchProtocol) -> list[str]:
    matched = set(protocol.positive_query.tolist())
    return [
        f"{path}: query {index + 1} has no match in the gallery of {protocol.name}"
        for index in range(len(protocol.queries))
        if index not in matched
    ]


def look_at_images(
    paths: list[str], decode: bool, log: IrregularityLog
) -> tuple[list[ImageState], list[str]]:
    """Inspects images, see :func:`person_search.data.image_io.look_at_image`.

    Args:
        paths: Image files.
        decode: Also decodes the images.
        log: Receives the oddities of the images.

    Returns:
        The state of each image, and an error for each unreadable one.
    """
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(partial(look_at_image, decode=decode), paths))
    errors = []
    for path, state in zip(paths, states, strict=True):
        for kind in state.oddities:
            height, width = state.size
            log.add(kind, path, f"{width} x {height} (width x height)")
        if state.error:
            errors.append(f"{path}: {state.error}")
    return states, errors


def check_json_dataset(
    json_file: str | Path, image_root: str | Path | None = None, decode: bool = False
) -> CheckReport:
    """Reads an annotation file (COCO-style JSON) and inspects all its images.

    Args:
        json_file: Annotation file.
        image_root: Folder to which file names are relative. Default: the folder of ``json_file``.
        decode: Also decodes every image.

    Returns:
        The report. A file that is not JSON yields one error and no counts.
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
    table, findings = parse_document(document)
    if not table.names:
        report.errors += [f"{path}: {finding}" for finding in findings]
        return report
    sound = not findings
    if not sound:  # set the faulty annotations apart, so that the others can be checked
        wrong = (table.box_image < 0) | ~np.isfinite(table.boxes).all(axis=1)
        table = replace(
            table,
            left_out=np.where(wrong, np.uint8(FAULTY), table.left_out),
            box_image=np.maximum(table.box_image, 0),
            boxes=np.nan_to_num(table.boxes),
            query_ids=None,
            query_image=None,
            query_boxes=None,
            query_pids=None,
            galleries={},
        )
    sizes = _check_sizes(table, root, decode, report, findings)
    findings += box_faults(table, sizes)
    log_irregularities(table, sizes, path, report.irregularities)
    report.errors[:0] = [f"{path}: {finding}" for finding in findings]
    labeled = table.labeled_rows
    counts = {
        "images": len(table.names),
        "cameras": len(np.unique(table.cam_ids[table.has_camera])),
        "boxes": int(table.usable.sum()),
        "boxes left out": int((~table.usable).sum()),
        "boxes with identity": len(labeled),
        "images with identity": len(np.unique(table.box_image[labeled])),
        "identities": table.num_pids,
        "identities in several images": int((table.count_images() > 1).sum()),
    }
    if sound:
        name_of = dict(zip(table.image_ids.tolist(), table.names, strict=True))
        for name in protocol_names(table):
            try:
                protocol = load_json_protocol(path, name)
            except ValueError as e:
                report.errors.append(str(e))
                continue
            counts.setdefault("queries", len(protocol.queries))
            counts[f"queries of {name}"] = len(protocol.queries)
            counts[f"matches in {name}"] = len(protocol.positive_query)
            report.errors += _unmatched_queries(path, protocol)
            places = [f"{path}: {name}, query {query.query_id}" for query in protocol.queries]
            log_galleries(protocol, name_of, places, report.irregularities)
    report.counts = [Count(what, number, None) for what, number in counts.items()]
    if not sound:
        return report
    if not len(labeled):
        hint = identity_hint(document)
        report.notes.append(
            f"{path}: no annotation has a person_id, which training and search evaluation need"
            + f"; {hint}" * bool(hint)
        )
    elif not counts.get("queries"):
        report.notes.append(
            f"{path}: no person is labeled in two images, so no query can be evaluated"
        )
    if not report.errors:
        report.uses += ["training"] * bool(len(labeled))
        report.uses += ["evaluation"] * bool(counts.get("queries"))
        report.uses += ["detection only"] * bool(counts["boxes"] and not report.uses)
    return report


def _check_sizes(
    table: AnnotationTable, root: Path, decode: bool, report: CheckReport, findings: list[str]
) -> np.ndarray:
    """Inspects the images; returns (I, 2) their sizes, or those of the file if unreadable."""
    named = [row for row, name in enumerate(table.names) if name.strip()]
    paths = image_paths(table, root)
    states, errors = look_at_images([paths[row] for row in named], decode, report.irregularities)
    report.errors += errors
    sizes = table.sizes.copy()
    for row, state in zip(named, states, strict=True):
        said, real = tuple(sizes[row].tolist()), state.size
        if real[0]:
            sizes[row] = real
        if not real[0] or not said[0] or said == real:
            continue
        hint = ""
        if "exif_turned" in state.oddities and said == real[::-1]:
            hint = (
                "; the image has an EXIF orientation: sizes and boxes must refer to the upright "
                "image as viewers show it"
            )
        findings.append(
            f"images[{row}]: {table.names[row]} is {real[1]} x {real[0]} (width x height), but "
            f"the file says {said[1]} x {said[0]}{hint}"
        )
    return sizes
