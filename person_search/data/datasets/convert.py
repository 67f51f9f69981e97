# SPDX-License-Identifier: Apache-2.0
"""Converts data sets and exports of annotation tools to annotation files (COCO-style JSON)."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from person_search.data.datasets.annotations import AnnotationTable
from person_search.data.datasets.check import FORMATS
from person_search.data.datasets.common import DatasetLayout, IrregularityLog
from person_search.data.datasets.frames import persons_of, records_of, split_frames
from person_search.data.datasets.json_dataset import missing_images
from person_search.data.datasets.json_document import parse_document
from person_search.data.datasets.json_writer import make_document, write_document
from person_search.data.datasets.label_tools import LabelOptions, load_labels
from person_search.data.datasets.mot import MotOptions, load_mot
from person_search.data.datasets.protocols import default_query_rows, protocol_names
from person_search.data.datasets.prw import read_prw_pids

Report = Callable[[str], None]
"""Receives a short description of each step."""


@dataclass(frozen=True)
class ConvertedSplit:
    """A written annotation file.

    Attributes:
        split: ``train`` or ``test``; ``all`` if the file is the whole data set.
        path: Annotation file.
        image_root: Folder to which its file names are relative.
        table: Its content.
        protocols: Names of the protocols, the default first; empty for the training split.
    """

    split: str
    path: Path
    image_root: Path
    table: AnnotationTable
    protocols: tuple[str, ...]


def find_image_root(root: Path, output: Path) -> Path:
    """Returns the folder to which file names are relative: ``output`` if it contains ``root``."""
    return output if root.resolve().is_relative_to(output.resolve()) else root


def convert_known_format(
    format_name: str, root: Path, output: Path, name: str, report: Report = lambda text: None
) -> list[ConvertedSplit]:
    """Converts CUHK-SYSU or PRW. Evaluations of the result and of the original are identical.

    Args:
        format_name: ``cuhk_sysu`` or ``prw``.
        root: Folder of the data set.
        output: Folder for ``<name>_train.json`` and ``<name>_test.json``. File names are relative
            to it if it contains the images, else to ``root``.
        name: Name of the new data set.
        report: Receives a description of each step.
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
        if format_name == "prw":  # keeps the identity numbers of the release
            persons: int | Sequence[int] = read_prw_pids(root, split)
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
    """Converts MOT sequences; the queries are the largest box of each person.

    Args:
        folder: Folder of sequences, or one sequence.
        output: See :func:`convert_known_format`.
        name: Name of the new data set.
        options: Selection and split.
        report: Receives a description of each step.

    Raises:
        ValueError: If no person is in two test frames.
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
                    f"{folder}: no person is in two frames of the test split, so there is no "
                    "query; take more frames (every) or a larger share"
                )
            document["queries"] = [
                {"id": number, "annotation_id": row} for number, row in enumerate(rows)
            ]
        done.append(_write(split, output / f"{name}_{split}.json", image_root, document))
    return done


def convert_labels(
    kind: str,
    file: Path,
    images: Path,
    output: Path,
    name: str,
    options: LabelOptions,
    report: Report = lambda text: None,
) -> list[ConvertedSplit]:
    """Converts an export of an annotation tool.

    Args:
        kind: ``cvat`` or ``label_studio``.
        file: Exported file.
        images: Folder of the images.
        output: See :func:`convert_known_format`. Without a split, the file is ``<name>.json``.
        name: Name of the new data set.
        options: How to read and split it.
        report: Receives what was chosen and left out.
    """
    report(f"reading {file.name}")
    frames, folders = load_labels(kind, file, images, options, report)
    image_root = find_image_root(images, output)
    if options.single:
        persons = persons_of(frames)
        splits = {"all": (records_of(frames, persons), persons)}
    else:
        splits = split_frames(frames, folders, options, file)
    done = []
    for split, (records, persons) in splits.items():
        document = make_document(records, image_root, persons, (), f"{file.name}, {split}")
        path = output / (f"{name}.json" if split == "all" else f"{name}_{split}.json")
        done.append(_write(split, path, image_root, document))
    return done


def convert_documents(
    documents: dict[str, dict],
    root: Path,
    output: Path,
    name: str,
    layout: DatasetLayout,
    report: Report = lambda text: None,
) -> list[ConvertedSplit]:
    """Writes the documents of a data set.

    Args:
        documents: Annotation documents by split; file names are relative to ``root``.
        root: Folder of the data set.
        output: See :func:`convert_known_format`.
        name: Name of the new data set.
        layout: Layout of the data set, for messages.
        report: Receives a description of each step.

    Raises:
        IncompleteDatasetError: If images are missing.
    """
    image_root = find_image_root(root, output)
    below = Path(os.path.relpath(root.resolve(), image_root.resolve()))
    for document in documents.values():
        names = [str(root / image["file_name"]) for image in document["images"]]
        absent = missing_images(names)
        if absent:
            raise layout.missing(root, Path(absent[0]), len(absent) - 1)
        for image in document["images"]:
            image["file_name"] = (below / image["file_name"]).as_posix()
    done = []
    for split, document in documents.items():
        report(f"writing the {split} split")
        done.append(_write(split, output / f"{name}_{split}.json", image_root, document))
    return done


def _write(split: str, path: Path, image_root: Path, document: dict) -> ConvertedSplit:
    table, faults = parse_document(document)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ValueError(f"{path} would be faulty, as the original is: {faults[0]}{more}")
    write_document(path, document)
    protocols = () if split == "train" else protocol_names(table)
    return ConvertedSplit(split, path, image_root, table, protocols)
