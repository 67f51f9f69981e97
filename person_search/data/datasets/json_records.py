# SPDX-License-Identifier: Apache-2.0
"""Records of a data set from an annotation file (COCO-style JSON).

The format is described in ``docs/adding_a_dataset.md``. A file is one data set: it may be trained
on, tested on, or both. Its checked arrays and the sizes of its images are cached beside it.

Shape shorthand: I images, B annotations, Q queries.
"""

import gc
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from detectron2.structures import BoxMode

from person_search.data.datasets.common import (
    DatasetLayout,
    IncompleteDatasetError,
    IrregularityLog,
    make_query,
    xywh_to_xyxy,
)
from person_search.data.datasets.image_sizes import image_sizes
from person_search.data.datasets.json_boxes import box_faults, log_irregular_boxes, usable_boxes
from person_search.data.datasets.json_columns import AnnotationFileError
from person_search.data.datasets.json_protocols import make_queries
from person_search.data.datasets.json_reader import read_tables
from person_search.data.datasets.json_tables import AnnotationTables
from person_search.schema import PERSON_CATEGORY_ID, UNLABELED_PID

logger = logging.getLogger(__name__)

_SHOWN = 3


def image_paths(tables: AnnotationTables, image_root: Path) -> list[str]:
    """Returns the I files; an absolute ``file_name`` is taken as it stands."""
    root = os.fspath(image_root)
    return [os.path.join(root, name) for name in tables.names]


def missing_images(paths: list[str]) -> list[str]:
    """Returns those files that are not there; folders are listed, not every file asked for."""
    by_folder = defaultdict(list)
    for path in paths:
        by_folder[os.path.dirname(path)].append(path)
    missing = set()
    for folder, files in by_folder.items():
        try:
            held = set(os.listdir(folder or "."))
        except OSError:
            held = set()
        # what is not in the listing may still be found, on disks that ignore upper and lower case
        missing |= {
            path
            for path in files
            if os.path.basename(path) not in held and not os.path.exists(path)
        }
    return [path for path in paths if path in missing]


def picture_sizes(
    tables: AnnotationTables, json_file: Path, image_root: Path, log: IrregularityLog
) -> np.ndarray:
    """Returns (I, 2) height and width: the file's, or else those of the images (0: damaged)."""
    sizes = tables.sizes.copy()
    todo = np.flatnonzero(sizes[:, 0] == 0).tolist()
    if todo:
        paths = image_paths(tables, image_root)
        layout = DatasetLayout(str(json_file), (), f"  {len(paths)} images", "add them.")
        sizes[todo] = image_sizes(
            image_root, f"{json_file.name}.sizes", [Path(paths[row]) for row in todo], layout, log
        )
    return sizes


def load_person_search_json(
    json_file: str | Path,
    image_root: str | Path | None = None,
    irregularities: IrregularityLog | None = None,
) -> list[dict]:
    """Reads a data set from its annotation file.

    Args:
        json_file: see ``docs/adding_a_dataset.md``.
        image_root: folder that the file names start from; None: that of ``json_file``.
        irregularities: if given, collects what was odd; otherwise one warning per kind is logged.

    Returns:
        Records in the order of the file, with its image ids; identities are numbered 0, 1, ...
        Every record carries ``queries``, which training ignores.

    Raises:
        FileNotFoundError: the file, or an image, is not there.
        AnnotationFileError: the file has faults, or boxes lie outside their images.
    """
    path = Path(json_file)
    root = path.parent if image_root is None else Path(image_root)
    log = IrregularityLog() if irregularities is None else irregularities
    tables = read_tables(path)
    paths = image_paths(tables, root)
    _require_images(path, root, paths)
    sizes = picture_sizes(tables, path, root, log)
    faults = box_faults(tables, sizes)
    if faults:
        raise AnnotationFileError(path, faults)
    log_irregular_boxes(tables, sizes, str(path), log)
    with _no_garbage_collection():
        records = _make_records(tables, paths, sizes)
        row_of = {image_id: row for row, image_id in enumerate(tables.image_ids.tolist())}
        for query in make_queries(tables):
            records[row_of[query.image_id]]["queries"].append(make_query(query.query_id, query.box))
    if irregularities is None:
        log.warn(logger, str(path))
    return records


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of new objects, none of them garbage: looking through them doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _require_images(path: Path, root: Path, paths: list[str]) -> None:
    missing = missing_images(paths)
    if missing:
        raise IncompleteDatasetError(
            f"{len(missing)} of the {len(paths)} images of {path} do not exist, e.g. "
            f"{', '.join(missing[:_SHOWN])}. File names are relative to the image root, which is "
            f"{root.absolute()}: correct that or the names."
        )


def _make_records(tables: AnnotationTables, paths: list[str], sizes: np.ndarray) -> list[dict]:
    """Returns the records with their annotations and no queries yet."""
    usable = np.flatnonzero(usable_boxes(tables))
    order = usable[np.argsort(tables.box_image[usable], kind="stable")]
    counts = np.bincount(tables.box_image[order], minlength=len(paths))
    ends = np.cumsum(counts).tolist()
    annotations = [
        {
            "bbox": box,
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": PERSON_CATEGORY_ID,
            "person_id": label,
        }
        for box, label in zip(
            xywh_to_xyxy(tables.boxes[order]).tolist(), tables.labels[order].tolist(), strict=True
        )
    ]
    cams = tables.cam_ids.tolist()
    has_camera = tables.has_camera.tolist()
    records = []
    start = 0
    for row, (image_id, size, end) in enumerate(
        zip(tables.image_ids.tolist(), sizes.tolist(), ends, strict=True)
    ):
        records.append(
            {
                "file_name": paths[row],
                "image_id": image_id,
                "height": size[0],
                "width": size[1],
                "cam_id": cams[row] if has_camera[row] else None,
                "annotations": annotations[start:end],
                "queries": [],
            }
        )
        start = end
    return records


def count_json_pids(json_file: str | Path) -> int:
    """Returns the number of identities of an annotation file.

    Raises:
        ValueError: there is none, so that nothing can be trained.
    """
    tables = read_tables(json_file)
    if tables.num_pids == 0 or (tables.labels == UNLABELED_PID).all():
        raise ValueError(
            f"{json_file}: no annotation has a person_id, so there is no identity to train on; "
            "give every person that is known in two or more images the same person_id in each"
        )
    return tables.num_pids
