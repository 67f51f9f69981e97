# SPDX-License-Identifier: Apache-2.0
"""Reads a data set from an annotation file (COCO-style JSON, see ``docs/adding_a_dataset.md``).

A file is one data set, for training, testing, or both. The parsed table and the image sizes are
cached beside it.

Shape shorthand: I images, B annotations, Q queries.
"""

import logging
import os
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np

from person_search.data.datasets.annotations import (
    BORDER_TOLERANCE,
    KEPT,
    AnnotationTable,
    log_irregular_boxes,
    show_box,
)
from person_search.data.datasets.cache import cached_arrays, fingerprint
from person_search.data.datasets.common import (
    DatasetLayout,
    IncompleteDatasetError,
    IrregularityLog,
)
from person_search.data.datasets.image_sizes import image_sizes
from person_search.data.datasets.json_document import (
    AnnotationFileError,
    parse_document,
    read_json,
)
from person_search.data.datasets.protocols import make_protocol, make_queries, protocol_names
from person_search.data.datasets.records import make_records
from person_search.schema import UNLABELED_PID, SearchProtocol

logger = logging.getLogger(__name__)

_CACHE_VERSION = 2  # increase when the meaning of any array of AnnotationTable changes
_LARGE_FILE = 20_000_000  # bytes

_FAR, _SUSPICIOUS_SHARE = 0.05, 0.25
"""Boxes are suspected to have another format than [x, y, width, height] in pixels if this share of
them exceeds the image by this part of its size, or has relative coordinates."""


def read_table(json_file: str | Path) -> AnnotationTable:
    """Reads an annotation file, from its cache if possible. The arrays must not be modified.

    Raises:
        FileNotFoundError: If the file does not exist.
        AnnotationFileError: If it has faults.
    """
    path = Path(json_file)
    if not path.exists():
        raise FileNotFoundError(
            f"the annotation file {path} does not exist (absolute path: {path.absolute()})"
        )
    return _read_table(path, fingerprint([path]))


@lru_cache(maxsize=4)
def _read_table(path: Path, key: str) -> AnnotationTable:
    # the key makes the in-memory cache notice a changed file
    def build() -> dict[str, np.ndarray]:
        if path.is_file() and path.stat().st_size > _LARGE_FILE:
            logger.info(f"Reading {path} (once)")
        table, findings = parse_document(read_json(path))
        if findings:
            raise AnnotationFileError(path, findings)
        return table.pack()

    name = f"{path.name}.v{_CACHE_VERSION}"
    return AnnotationTable.unpack(cached_arrays(path.parent, name, [path], build))


def image_paths(table: AnnotationTable, image_root: Path) -> list[str]:
    """Returns the I image files; an absolute ``file_name`` is used as it is."""
    root = os.fspath(image_root)
    paths = []
    for name in table.names:
        # names are UTF-8 on the disk, whatever the locale says
        path = os.path.join(root, os.fsdecode(name.encode("utf-8", "surrogateescape")))
        if "\\" in name and not os.path.exists(path):  # written on Windows
            path = os.path.join(root, name.replace("\\", "/"))
        paths.append(path)
    return paths


def missing_images(paths: list[str]) -> list[str]:
    """Returns the missing files. Lists each folder once, which is faster than testing each file."""
    by_folder = defaultdict(list)
    for path in paths:
        by_folder[os.path.dirname(path)].append(path)
    missing = set()
    for folder, files in by_folder.items():
        try:
            held = set(os.listdir(folder or "."))
        except OSError:
            held = set()
        # a file missing from the listing may exist on a case-insensitive disk
        missing |= {
            path
            for path in files
            if os.path.basename(path) not in held and not os.path.exists(path)
        }
    return [path for path in paths if path in missing]


def box_faults(table: AnnotationTable, sizes: np.ndarray) -> list[str]:
    """Checks the boxes of an annotation file against the image sizes.

    Args:
        table: Content of the file.
        sizes: (I, 2) height and width; images of unknown size (0) are skipped.

    Returns:
        One sentence per impossible box, or one for all if they have another format.
    """
    faults = _negative_sizes("annotations", table.boxes)
    usable = np.flatnonzero(table.usable & (sizes[table.box_image][:, 0] > 0))
    boxes, whole = table.boxes[usable], sizes[table.box_image[usable]][:, ::-1]
    extent = boxes[:, 2:] - boxes[:, :2]
    far = (boxes[:, 2:] > (1 + _FAR) * whole).any(axis=1)
    relative = ((boxes[:, :2] <= 1) & (extent < 1) & (whole > 2)).all(axis=1)
    as_corners = ((extent > boxes[:, :2]) & (extent <= whole + BORDER_TOLERANCE)).all()
    if len(usable) and relative.mean() >= _SUSPICIOUS_SHARE:
        row = usable[relative.argmax()]
        return [
            *faults,
            f"annotations: {relative.sum()} of {len(usable)} boxes lie between 0 and 1, e.g. "
            f"annotations[{row}] {show_box(table.boxes[row])}: they seem to be relative to the "
            "image size, but bbox must be [x, y, width, height] in pixels; multiply x and width "
            "by the image width, y and height by its height",
        ]
    if len(usable) and far.mean() >= _SUSPICIOUS_SHARE and as_corners:
        row = usable[far.argmax()]
        height, width = sizes[table.box_image[row]]
        return [
            *faults,
            f"annotations: {far.sum()} of {len(usable)} boxes lie far outside their images, none "
            f"would as corners (x1, y1, x2, y2), e.g. annotations[{row}] "
            f"{show_box(table.boxes[row])} in an image of {width} x {height} (width x height): "
            "bbox must be [x, y, width, height]",
        ]
    kept = table.left_out == KEPT
    faults += _outside("annotations", table.boxes, table.box_image, kept, table, sizes)
    queries, images = table.query_boxes, table.query_image
    if queries is not None and images is not None:
        faults += [
            f"queries[{row}]: the box {show_box(queries[row])} has no area"
            for row in np.flatnonzero((queries[:, 2:] == queries[:, :2]).any(axis=1))
        ]
        faults += _negative_sizes("queries", queries)
        faults += _outside("queries", queries, images, np.ones(len(queries), bool), table, sizes)
    return faults


def _negative_sizes(section: str, boxes: np.ndarray) -> list[str]:
    return [
        f"{section}[{row}]: the box {show_box(boxes[row])} has a negative width or height; bbox "
        "is [x, y, width, height] with x, y the upper left corner"
        for row in np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1)).tolist()
    ]


def _outside(
    section: str,
    boxes: np.ndarray,
    image: np.ndarray,
    kept: np.ndarray,
    table: AnnotationTable,
    sizes: np.ndarray,
) -> list[str]:
    """Returns a sentence per box that lies entirely outside its image."""
    whole = sizes[image][:, ::-1]
    outside = ((boxes[:, :2] >= whole) | (boxes[:, 2:] <= 0)).any(axis=1)
    outside &= kept & (whole[:, 0] > 0) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return [
        f"{section}[{row}]: the box {show_box(boxes[row])} [x, y, width, height] lies outside the "
        f"image {table.names[image[row]]} of {whole[row, 0]} x {whole[row, 1]} (width x height)"
        for row in np.flatnonzero(outside).tolist()
    ]


def log_irregularities(
    table: AnnotationTable, sizes: np.ndarray, path: Path, log: IrregularityLog
) -> None:
    """Logs the irregular boxes of an annotation file, see :func:`log_irregular_boxes`."""

    def place(kind: str, image: int, row: int | None) -> str:
        entry = f"images[{image}]" if row is None else f"annotations[{row}]"
        return f"{path}: {entry}, {table.names[image]}"

    log_irregular_boxes(table, sizes, log, place)


def load_person_search_json(
    json_file: str | Path,
    image_root: str | Path | None = None,
    irregularities: IrregularityLog | None = None,
) -> list[dict]:
    """Loads the records of an annotation file.

    Args:
        json_file: Annotation file, see ``docs/adding_a_dataset.md``.
        image_root: Folder to which file names are relative. Default: the folder of ``json_file``.
        irregularities: Receives the irregularities. Default: one warning per kind is logged.

    Returns:
        Records in the order of the file, with its image ids. Identities are numbered 0, 1, ...
        Every record has ``queries``, which training ignores.

    Raises:
        FileNotFoundError: If the file or an image does not exist.
        AnnotationFileError: If the file has faults, or boxes lie outside their images.
    """
    path = Path(json_file)
    root = path.parent if image_root is None else Path(image_root)
    log = IrregularityLog() if irregularities is None else irregularities
    table = read_table(path)
    paths = image_paths(table, root)
    missing = missing_images(paths)
    if missing:
        raise IncompleteDatasetError(
            f"{len(missing)} of the {len(paths)} images of {path} do not exist, e.g. "
            f"{', '.join(missing[:3])}. File names are relative to the image root, which is "
            f"{root.absolute()}: correct the image root or the names."
        )
    sizes = table.sizes.copy()
    todo = np.flatnonzero(sizes[:, 0] == 0).tolist()
    if todo:  # sizes that the file does not state
        layout = DatasetLayout(str(path), (), f"  {len(paths)} images", "add them.")
        unknown = [Path(paths[row]) for row in todo]
        sizes[todo] = image_sizes(root, f"{path.name}.sizes", unknown, layout, log)
    faults = box_faults(table, sizes)
    if faults:
        raise AnnotationFileError(path, faults)
    log_irregularities(table, sizes, path, log)
    records = make_records(table, paths, sizes, make_queries(table))
    if irregularities is None:
        log.warn(logger, str(path))
    return records


def load_json_protocol(json_file: str | Path, name: str) -> SearchProtocol:
    """Loads a search protocol of an annotation file.

    Args:
        json_file: Annotation file, see ``docs/adding_a_dataset.md``.
        name: ``all``, ``multi_view``, ``listed``, or a protocol named in the file.

    Returns:
        Protocol with the ids of :func:`load_person_search_json`. The person's first box in a
        gallery image is the match, unless the file states the matches. ``multi_view`` omits queries
        whose person is in no other camera.

    Raises:
        ValueError: If the file has no such protocol.
    """
    table = read_table(json_file)
    names = protocol_names(table)
    if name not in names:
        hint = ""
        if name == "multi_view":
            hint = "; multi_view needs cam_id, and a query whose person is in two cameras"
        raise ValueError(f"{json_file} has no protocol {name!r}; available: {list(names)}{hint}")
    return make_protocol(table, name)


def count_json_pids(json_file: str | Path) -> int:
    """Returns the number of identities of an annotation file.

    Raises:
        ValueError: If there are none, so that the file cannot be used for training.
    """
    table = read_table(json_file)
    if table.num_pids == 0 or (table.labels == UNLABELED_PID).all():
        raise ValueError(
            f"{json_file}: no annotation has a person_id, so there is no identity to train on. "
            "Give each person known in two or more images the same person_id in each annotation "
            "(CVAT exports it under attributes; copy it to the annotation itself)"
        )
    return table.num_pids
