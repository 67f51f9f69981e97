# SPDX-License-Identifier: Apache-2.0
"""Counts a data set beside the published numbers and collects everything that is odd about it.

*Irregularities* are known oddities that the readers cope with, *errors* make a set unfit for use.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

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
from person_search.data.datasets.cuhk_sysu_files import (
    count_train_pids as count_cuhk_sysu_pids,
)
from person_search.data.datasets.prw import PRW_PROTOCOLS, load_prw, load_prw_protocol
from person_search.data.datasets.prw_files import (
    PRW_LAYOUT,
    QUERY_FILE,
)
from person_search.data.datasets.prw_files import (
    count_train_pids as count_prw_pids,
)
from person_search.data.image_io import ImageState, look_at_image
from person_search.schema import UNLABELED_PID, SearchProtocol, record_problems

SYNTHETIC_MARK = "synthetic.json"
"""File in the root of a generated set; published numbers say nothing about such a set."""

_DROPPED = ("zero_size_box", "box_outside")
_FATAL = ("unreadable_image",)


@dataclass(frozen=True)
class DatasetFormat:
    """How to read a data set of one format, and what the original one holds.

    Args:
        layout: its folders, for messages.
        load: reader of a split.
        protocols: the names of the protocols that a root offers.
        load_protocol: reader of a protocol.
        protocol_file: the file that a protocol comes from, for messages.
        count_train_pids: number of training identities.
        box_tolerance: pixels by which boxes may reach over the border; infinite where the reader
            reports them as irregularities.
        published: count -> number in the original data set.
        check_more: adds what only this format has to look at.
    """

    layout: DatasetLayout
    load: Callable[[Path, str, IrregularityLog], list[dict]]
    protocols: Callable[[Path], list[str]]
    load_protocol: Callable[[Path, str, IrregularityLog], SearchProtocol]
    protocol_file: Callable[[Path, str], Path]
    count_train_pids: Callable[[Path], int]
    box_tolerance: float
    published: dict[str, int]
    check_more: Callable[[Path, "CheckReport"], None] | None = None


def _cuhk_sysu_protocols(root: Path) -> list[str]:
    first = reference_protocol(root)
    others = [name for name in existing_protocols(root) if name != first]
    return [first, *others, *readable_subsets(root)]


def _load_cuhk_sysu(root: Path, split: str, log: IrregularityLog) -> list[dict]:
    """Reads a split without the subsets that are broken, which are reported by themselves."""
    subsets = readable_subsets(root) if split == "test" else None
    return load_cuhk_sysu(root, split, log, subsets=subsets)


def _check_cuhk_sysu_subsets(root: Path, report: "CheckReport") -> None:
    findings = check_subsets(root)
    report.notes += findings.notes
    report.errors += findings.errors
    report.irregularities += findings.irregularities


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
        check_more=_check_cuhk_sysu_subsets,
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
"""The formats that can be checked, with the numbers known of the original sets."""


@dataclass(frozen=True)
class Count:
    """One number of a data set, and the same number of the original, where that is known."""

    what: str
    found: int
    published: int | None

    @property
    def differs(self) -> bool:
        return self.published is not None and self.found != self.published


@dataclass
class CheckReport:
    """What ``check_dataset`` found; the set is fit for use if ``errors`` is empty.

    ``notes`` are about parts that need not be there.
    """

    title: str
    root: Path
    counts: list[Count] = field(default_factory=list)
    irregularities: IrregularityLog = field(default_factory=IrregularityLog)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _count_split(split: str, records: list[dict], log: IrregularityLog) -> dict[str, int]:
    boxes = [a for record in records for a in record["annotations"]]
    dropped = sum(item.kind in _DROPPED for item in log)
    return {
        f"{split} images": len(records),
        # publications count the boxes of the files, also those that a reader drops
        f"{split} boxes": len(boxes) + dropped,
        f"{split} boxes dropped": dropped,
        f"{split} boxes with identity": sum(a["person_id"] != UNLABELED_PID for a in boxes),
        f"{split} images with identity": sum(
            any(a["person_id"] != UNLABELED_PID for a in record["annotations"])
            for record in records
        ),
    }


def _record_errors(records: list[dict], is_test: bool, tolerance: float) -> list[str]:
    """Returns the problems of all records whose image has a known size."""
    return [
        f"{record['file_name']}: {problem}"
        for record in records
        if record["height"]
        for problem in record_problems(record, is_test, tolerance)
    ]


def protocol_errors(
    path: Path, protocol: SearchProtocol, first: SearchProtocol | None = None
) -> list[str]:
    """Returns queries without a match, and where it disagrees with the first protocol."""
    found = set(protocol.positive_query.tolist())
    errors = [
        f"{path}: query {index + 1} has no match in the gallery of {protocol.name}"
        for index in range(len(protocol.queries))
        if index not in found
    ]
    if first is not None and list(protocol.queries) != list(first.queries):
        errors.append(f"{path}: {protocol.name} holds other queries than {first.name}")
    return errors


def look_at_images(
    paths: list[str], decode: bool, log: IrregularityLog
) -> tuple[list[ImageState], list[str]]:
    """Looks at every image, see :mod:`person_search.data.image_io`.

    Returns:
        What each one is, and a sentence for each one that cannot be read.
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


def check_dataset(
    format_name: str, root: Path, compare: bool | None = None, decode: bool = False
) -> CheckReport:
    """Reads a whole data set and reports on it.

    Args:
        format_name: key of ``FORMATS``.
        root: folder of the data set.
        compare: whether to put the published numbers beside its own and to take a difference for
            an error; None does so unless the set is marked as synthetic.
        decode: also decode every image, which takes minutes but finds files cut off in copying.

    Returns:
        The report. A set that cannot be read at all gives one error and no counts.
    """
    kind = FORMATS[format_name]
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
    return report


def _read_all(kind: DatasetFormat, root: Path, report: CheckReport, decode: bool) -> dict[str, int]:
    """Fills irregularities and errors of the report; returns all counts in order."""
    counts: dict[str, int] = {"images": 0}
    for split in ("train", "test"):
        log = IrregularityLog()
        try:
            records = kind.load(root, split, log)
        except ValueError as e:  # the other split may still tell something
            report.errors.append(str(e))
            continue
        report.irregularities += log
        report.errors += [f"{i.where}: {i.detail}" for i in log if i.kind in _FATAL]
        report.errors += _record_errors(records, split == "test", kind.box_tolerance)
        if decode:
            pictures = [record["file_name"] for record in records]
            report.errors += look_at_images(pictures, decode, report.irregularities)[1]
        counts["images"] += len(records)
        counts |= _count_split(split, records, log)
        if split == "train":
            counts["train identities"] = kind.count_train_pids(root)
    if kind.check_more is not None:
        kind.check_more(root, report)
    return counts | _read_protocols(kind, root, report)


def _read_protocols(kind: DatasetFormat, root: Path, report: CheckReport) -> dict[str, int]:
    """Fills irregularities and errors of the report; returns the counts of all protocols."""
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
        if name in SUBSETS:
            counts[f"queries of {name}"] = len(protocol.queries)
        counts[f"matches in {name}"] = len(protocol.positive_query)
        shared = None if name in SUBSETS else first  # subsets have queries of their own
        report.errors += protocol_errors(kind.protocol_file(root, name), protocol, shared)
    return counts
