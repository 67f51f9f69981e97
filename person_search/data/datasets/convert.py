# SPDX-License-Identifier: Apache-2.0
"""CUHK-SYSU, PRW and MOT sequences as annotation files (COCO-style JSON)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from person_search.data.datasets.check import FORMATS
from person_search.data.datasets.common import IrregularityLog
from person_search.data.datasets.json_document import parse_document
from person_search.data.datasets.json_protocols import default_query_rows, protocol_names
from person_search.data.datasets.json_writer import make_document, write_document
from person_search.data.datasets.mot import MotOptions, load_mot
from person_search.data.datasets.prw_files import read_pids
from person_search.schema import UNLABELED_PID

Report = Callable[[str], None]
"""Is told, in a few words, what comes next."""


@dataclass(frozen=True)
class ConvertedSplit:
    """What was written: one annotation file.

    Args:
        split: ``train`` or ``test``.
        path: the file.
        image_root: folder that its file names start from.
        images, boxes, labeled, persons, queries: counts.
        protocols: names, the default first; empty for the training split.
    """

    split: str
    path: Path
    image_root: Path
    images: int
    boxes: int
    labeled: int
    persons: int
    queries: int
    protocols: tuple[str, ...]


def find_image_root(root: Path, output: Path) -> Path:
    """Returns the folder that file names start from: ``output`` if it holds ``root``."""
    return output if root.resolve().is_relative_to(output.resolve()) else root


def convert_known_format(
    format_name: str, root: Path, output: Path, name: str, report: Report = lambda text: None
) -> list[ConvertedSplit]:
    """Converts CUHK-SYSU or PRW; evaluating the result gives what evaluating the original gives.

    Args:
        format_name: ``cuhk_sysu`` or ``prw``.
        root: folder of the data set.
        output: folder for ``<name>_train.json`` and ``<name>_test.json``; file names start from it
            if the images are below it, else from ``root``.
        name: of the new data set.
        report: is told what comes next.
    """
    kind = FORMATS[format_name]
    done = []
    for split in ("train", "test"):
        report(f"reading the {split} split")
        records = kind.load(root, split, IrregularityLog())
        protocols = []
        if split == "test":
            for protocol in kind.protocols(root):
                report(f"reading the protocol {protocol}")
                protocols.append(kind.load_protocol(root, protocol, IrregularityLog()))
        if format_name == "prw":  # by the numbers of the release; positions would tell nobody
            persons: int | Sequence[int] = read_pids(root, split)
        elif split == "train":
            persons = kind.count_train_pids(root)
        else:
            persons = max(query.person_id for one in protocols for query in one.queries) + 1
        report(f"writing the {split} split")
        title = f"{kind.layout.title} {split}"
        image_root = find_image_root(root, output)
        document = make_document(records, image_root, persons, protocols, title)
        done.append(_write(split, output / f"{name}_{split}.json", image_root, document))
    return done


def convert_mot(
    folder: Path, output: Path, name: str, options: MotOptions, report: Report = lambda text: None
) -> list[ConvertedSplit]:
    """Converts MOT sequences; queries are each person's largest box.

    Raises:
        ValueError: no person is in two test frames.
    """
    done = []
    for split, (records, persons) in load_mot(folder, options, report).items():
        report(f"writing the {split} split")
        image_root = find_image_root(folder, output)
        document = make_document(records, image_root, persons, (), f"MOT sequences, {split}")
        if split == "test":
            rows = default_query_rows(parse_document(document)[0]).tolist()
            if not rows:
                raise ValueError(
                    f"{folder}: nobody is in two frames of the test split, so there is no query; "
                    "take more frames (every) or a larger share"
                )
            document["queries"] = [
                {"id": number, "annotation_id": row} for number, row in enumerate(rows)
            ]
        done.append(_write(split, output / f"{name}_{split}.json", image_root, document))
    return done


def _write(split: str, path: Path, image_root: Path, document: dict) -> ConvertedSplit:
    tables, faults = parse_document(document)
    if faults:
        raise AssertionError(f"{path} would be faulty: {faults[:3]}")
    write_document(path, document)
    return ConvertedSplit(
        split=split,
        path=path,
        image_root=image_root,
        images=len(tables.names),
        boxes=len(tables.boxes),
        labeled=int((tables.labels != UNLABELED_PID).sum()),
        persons=tables.num_pids,
        queries=len(document.get("queries", ())),
        protocols=protocol_names(tables) if split == "test" else (),
    )
