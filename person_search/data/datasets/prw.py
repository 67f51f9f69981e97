# SPDX-License-Identifier: Apache-2.0
"""Reads PRW from the original files of the data set.

Boxes are real numbers. They are converted to XYXY first and clipped to the frame afterwards;
published code differs in rounding, with an effect below 0.1 points. Training identities are
positions in ``ID_train.mat`` (483 of them), test identities positions in ``ID_test.mat``. A
training identity in a test frame is unlabeled there.

Shape shorthand: I frames, B boxes of all frames, Q queries.
"""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from person_search.data.datasets.annotations import (
    BOX_OUTSIDE,
    KEPT,
    RULE_PROTOCOLS,
    AnnotationTable,
    log_irregular_boxes,
)
from person_search.data.datasets.cache import cached_arrays
from person_search.data.datasets.common import (
    DatasetLayout,
    IrregularityLog,
    check_split,
    read_text,
    xywh_to_xyxy,
)
from person_search.data.datasets.image_sizes import image_sizes
from person_search.data.datasets.matlab import cell_strings, load_variable
from person_search.data.datasets.protocols import make_queries, rule_protocol
from person_search.data.datasets.records import make_records
from person_search.schema import UNLABELED_PID, SearchProtocol

logger = logging.getLogger(__name__)

PRW_PROTOCOLS = RULE_PROTOCOLS

QUERY_FILE = "query_info.txt"
_FRAME_FOLDER = "frames"
_SPLIT_FILES = {"train": "frame_train.mat", "test": "frame_test.mat"}
_ID_FILES = {"train": "ID_train.mat", "test": "ID_test.mat"}
_SPLIT_VARIABLES = {"train": "img_index_train", "test": "img_index_test"}
_ID_VARIABLES = {"train": ["ID_train"], "test": ["ID_test2", "ID_test"]}
# the release uses three names for the same variable, one per file
_ANNOTATION_VARIABLES = ["box_new", "anno_file", "anno_previous"]
_FRAME_NAME = re.compile(r"c(\d+)s\d+_\d+")

PRW_LAYOUT = DatasetLayout(
    title="PRW",
    folders=("PRW", "PRW-v16.04.20"),
    tree="""\
  PRW/
    frames/c<camera>s<sequence>_<frame>.jpg  11,816 frames
    annotations/<frame name>.jpg.mat         boxes and identities, one file per frame
    frame_train.mat  frame_test.mat          names of the frames of each split
    ID_train.mat  ID_test.mat                identities of each split
    query_info.txt                           2,057 queries""",
    advice="follow the link on the authors' page (https://github.com/liangzheng06/PRW-baseline) "
    "and unpack the whole archive, or create synthetic data: "
    "python -m person_search.data.synthetic.",
)


def camera_of(frame: str) -> int:
    """Returns the camera number (1..6) in a frame name such as ``c2s1_001291``."""
    match = _FRAME_NAME.fullmatch(frame)
    if match is None:
        raise ValueError(f"{frame!r} is not a PRW frame name of the form c<camera>s<seq>_<frame>")
    return int(match[1])


def read_prw_pids(root: Path, split: str) -> list[int]:
    """Returns the original identity numbers of a split; positions are the labels."""
    path = root / _ID_FILES[split]
    pids = [int(number) for number in load_variable(path, _ID_VARIABLES[split]).reshape(-1)]
    if len(set(pids)) != len(pids):
        raise ValueError(f"{path} lists some identities twice")
    return pids


def count_prw_pids(root: str | Path) -> int:
    """Returns the number of training identities (483 in the real data set)."""
    PRW_LAYOUT.require(Path(root), [_ID_FILES["train"]])
    return len(read_prw_pids(Path(root), "train"))


def _read_frames(root: Path, split: str) -> list[str]:
    """Returns the sorted frame names of a split, without extension."""
    path = root / _SPLIT_FILES[split]
    names = [
        name.removesuffix(".jpg")
        for name in cell_strings(load_variable(path, [_SPLIT_VARIABLES[split]]))
    ]
    if len(set(names)) != len(names):
        raise ValueError(f"{path} lists some frames twice")
    return sorted(names)


def _read_boxes(root: Path, split: str, frames: list[str]) -> dict[str, np.ndarray]:
    """Returns box_frame (B,) index, raw_pids (B,), boxes (B, 4) left, top, width, height."""
    paths = [root / "annotations" / f"{frame}.jpg.mat" for frame in frames]
    absent = [path for path in paths if not path.exists()]
    if absent:
        raise PRW_LAYOUT.missing(root, absent[0], len(absent) - 1)

    def build() -> dict[str, np.ndarray]:
        if len(paths) > 1000:
            logger.info(f"Reading {len(paths)} annotation files in {paths[0].parent} (once)")
        indices, tables = [np.zeros(0, np.int32)], [np.zeros((0, 5))]
        for index, path in enumerate(paths):
            table = np.asarray(load_variable(path, _ANNOTATION_VARIABLES), np.float64)
            if table.size == 0:
                continue
            if table.ndim != 2 or table.shape[1] != 5:
                raise ValueError(f"{path}: rows of 5 numbers expected, got the shape {table.shape}")
            indices.append(np.full(len(table), index, np.int32))
            tables.append(table)
        table = np.concatenate(tables)
        return {
            "box_frame": np.concatenate(indices),
            "raw_pids": table[:, 0].astype(np.int64),
            "boxes": table[:, 1:],
        }

    return cached_arrays(root, f"{split}_annotations", paths, build)


def _clip(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Clips (N, 4) boxes to images of (N, 2) height and width; 0 (unknown) does not clip."""
    whole = np.tile(sizes[:, ::-1], 2)
    return np.where(whole > 0, np.clip(boxes, 0, whole), boxes)


def _read_table(root: Path, split: str, log: IrregularityLog) -> AnnotationTable:
    """Reads a split; boxes are clipped, and the test split has queries."""
    queries = [QUERY_FILE] if split == "test" else []
    needed = [_SPLIT_FILES[split], _ID_FILES[split], *queries, "annotations", _FRAME_FOLDER]
    PRW_LAYOUT.require(root, needed)
    frames = _read_frames(root, split)
    arrays = _read_boxes(root, split, frames)
    paths = [root / _FRAME_FOLDER / f"{frame}.jpg" for frame in frames]
    sizes = image_sizes(root, f"{split}_sizes", paths, PRW_LAYOUT, log)
    pids = read_prw_pids(root, split)
    label_of = {raw: label for label, raw in enumerate(pids)}
    image = arrays["box_frame"]
    boxes = xywh_to_xyxy(arrays["boxes"])
    clipped = _clip(boxes, sizes[image])
    outside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    outside &= (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    columns: dict[str, Any] = {
        "image_ids": np.arange(len(frames)),
        "names": [str(path) for path in paths],
        "sizes": sizes,
        "cam_ids": np.array([camera_of(frame) for frame in frames], np.int64),
        "box_image": image,
        "labels": np.array(
            [label_of.get(raw, UNLABELED_PID) for raw in arrays["raw_pids"].tolist()], np.int32
        ),
        "left_out": np.where(outside, BOX_OUTSIDE, KEPT).astype(np.uint8),
        "num_pids": len(pids),
    }

    def place(kind: str, frame: int, row: int | None) -> str:
        where = f"{root / 'annotations' / frames[frame]}.jpg.mat"
        return where if row is None else f"{where}: row {row - np.searchsorted(image, frame) + 1}"

    log_irregular_boxes(
        AnnotationTable(**columns, boxes=boxes), sizes, log, place, "box_clipped", tolerance=0
    )
    if split == "test":
        columns |= _read_queries(root, frames, sizes, label_of)
    return AnnotationTable(**columns, boxes=clipped)


def _read_queries(
    root: Path, frames: list[str], sizes: np.ndarray, label_of: dict[int, int]
) -> dict[str, np.ndarray]:
    """Returns the query columns of the table; ``query_id`` is the position in the file."""
    path = root / QUERY_FILE
    row_of = {frame: row for row, frame in enumerate(frames)}
    images, labels, boxes = [], [], []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            raw_pid, x, y, w, h, frame = line.split()
            pid, box = int(float(raw_pid)), [float(x), float(y), float(w), float(h)]
        except ValueError as e:
            raise ValueError(f"{where}: expected 'pid x y w h frame', got {line!r}") from e
        frame = frame.removesuffix(".jpg")
        if frame not in row_of:
            raise ValueError(f"{where}: the frame {frame!r} is not in {_SPLIT_FILES['test']}")
        if pid not in label_of:
            raise ValueError(f"{where}: the id {pid} is not in {_ID_FILES['test']}")
        row = row_of[frame]
        clipped = _clip(xywh_to_xyxy(np.array(box)), sizes[[row]])[0]
        if (clipped[2:] <= clipped[:2]).any():
            raise ValueError(
                f"{where}: the query box {box} (x, y, w, h) has no area inside the image "
                f"{root / _FRAME_FOLDER / frame}.jpg of {tuple(sizes[row].tolist())} "
                "(height, width)"
            )
        images.append(row)
        labels.append(label_of[pid])
        boxes.append(clipped)
    return {
        "query_ids": np.arange(len(images)),
        "query_image": np.array(images, np.int32),
        "query_boxes": np.array(boxes, np.float64).reshape(-1, 4),
        "query_pids": np.array(labels, np.int32),
    }


def load_prw(
    root: str | Path, split: str, irregularities: IrregularityLog | None = None
) -> list[dict]:
    """Loads the records of a split of PRW.

    Args:
        root: Folder with ``frames`` and ``annotations``.
        split: ``train`` or ``test``.
        irregularities: Receives the irregularities. Default: one warning per kind is logged.

    Returns:
        Records sorted by frame name. ``image_id`` is the position in the split. Test records have
        ``queries``.

    Raises:
        IncompleteDatasetError: If a file is missing; names the first one.
        ValueError: If the files contradict each other; names file and line.
    """
    check_split(split)
    log = IrregularityLog() if irregularities is None else irregularities
    table = _read_table(Path(root), split, log)
    queries = make_queries(table) if split == "test" else None
    records = make_records(table, table.names, table.sizes, queries)
    if irregularities is None:
        log.warn(logger, f"PRW {split}")
    return records


def load_prw_protocol(root: str | Path, name: str) -> SearchProtocol:
    """Loads a search protocol of PRW: every test frame is searched except excluded ones.

    Args:
        root: Folder with ``frames`` and ``annotations``.
        name: ``all`` excludes the query's own frame (the usual results); ``multi_view`` excludes
            every frame of the query's camera.

    Returns:
        Protocol with the ``image_id``s and test identities of ``load_prw(root, "test")``. If a
        frame has two boxes of a person, the first one counts.
    """
    if name not in PRW_PROTOCOLS:
        raise ValueError(f"unknown PRW protocol {name!r}; allowed: {list(PRW_PROTOCOLS)}")
    table = _read_table(Path(root), "test", IrregularityLog())
    return rule_protocol(table, name, keep_unmatched=True)
