# SPDX-License-Identifier: Apache-2.0
"""The files of PRW, turned into plain arrays; the per-frame annotations are cached.

Shape shorthand: N frames, B boxes of all frames, Q queries.
Boxes are left, top, width, height in this file, with the numbers that stand in the files.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from person_search.data.datasets.cache import cached_arrays
from person_search.data.datasets.common import DatasetLayout
from person_search.data.datasets.matlab import cell_strings, load_variable

logger = logging.getLogger(__name__)

FRAME_FOLDER = "frames"
QUERY_FILE = "query_info.txt"
SPLIT_FILES = {"train": "frame_train.mat", "test": "frame_test.mat"}
ID_FILES = {"train": "ID_train.mat", "test": "ID_test.mat"}
_SPLIT_VARIABLES = {"train": "img_index_train", "test": "img_index_test"}
_ID_VARIABLES = {"train": ["ID_train"], "test": ["ID_test2", "ID_test"]}
# the release uses three names for the same thing, one per file
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
    advice="follow the link of its authors' page (https://github.com/liangzheng06/PRW-baseline) "
    "and unpack all of it, or write synthetic data: python -m person_search.data.synthetic.",
)


def frame_path(root: Path, frame: str) -> Path:
    """Returns the image of a frame name, which has no extension."""
    return root / FRAME_FOLDER / f"{frame}.jpg"


def camera_of(frame: str) -> int:
    """Returns the camera number (1..6) in a frame name such as ``c2s1_001291``."""
    match = _FRAME_NAME.fullmatch(frame)
    if match is None:
        raise ValueError(f"{frame!r} is not a PRW frame name of the form c<camera>s<seq>_<frame>")
    return int(match[1])


def read_frames(root: Path, split: str) -> list[str]:
    """Returns the sorted frame names of a split, without extension."""
    path = root / SPLIT_FILES[split]
    names = [
        name.removesuffix(".jpg")
        for name in cell_strings(load_variable(path, [_SPLIT_VARIABLES[split]]))
    ]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: some frame names stand there twice")
    return sorted(names)


def read_pids(root: Path, split: str) -> list[int]:
    """Returns the raw identity numbers of a split; the position is the label used in training."""
    path = root / ID_FILES[split]
    numbers = load_variable(path, _ID_VARIABLES[split]).reshape(-1)
    pids = [int(number) for number in numbers]
    if len(set(pids)) != len(pids):
        raise ValueError(f"{path}: some identities stand there twice")
    return pids


def count_train_pids(root: str | Path) -> int:
    """Returns the number of training identities (483 in the real data set)."""
    PRW_LAYOUT.require(Path(root), [ID_FILES["train"]])
    return len(read_pids(Path(root), "train"))


def _convert_annotations(paths: list[Path]) -> dict[str, np.ndarray]:
    """Reads all annotation files: box_frame (B,) index, raw_pids (B,), boxes (B, 4)."""
    if len(paths) > 1000:
        logger.info(f"Reading {len(paths)} annotation files in {paths[0].parent} (once)")
    frames, tables = [], []
    for index, path in enumerate(paths):
        table = np.asarray(load_variable(path, _ANNOTATION_VARIABLES), np.float64)
        if table.size == 0:
            continue
        if table.ndim != 2 or table.shape[1] != 5:
            raise ValueError(f"{path}: rows of 5 numbers expected, got the shape {table.shape}")
        frames.append(np.full(len(table), index, np.int32))
        tables.append(table)
    table = np.concatenate(tables) if tables else np.zeros((0, 5))
    return {
        "box_frame": np.concatenate(frames) if frames else np.zeros(0, np.int32),
        "raw_pids": table[:, 0].astype(np.int64),
        "boxes": table[:, 1:],
    }


def read_annotations(root: Path, split: str, frames: list[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of ``_convert_annotations`` for the frames of a split."""
    paths = [root / "annotations" / f"{frame}.jpg.mat" for frame in frames]
    absent = [path for path in paths if not path.exists()]
    if absent:
        raise PRW_LAYOUT.missing(root, absent[0], len(absent) - 1)
    return cached_arrays(root, f"{split}_annotations", paths, lambda: _convert_annotations(paths))


@dataclass(frozen=True)
class QueryLine:
    """One line of ``query_info.txt``: raw identity, box (x, y, w, h), frame, file and line."""

    raw_pid: int
    box: tuple[float, float, float, float]
    frame: str
    where: str


def read_queries(root: Path) -> list[QueryLine]:
    """Returns the queries in file order. Lines may end with CRLF (as in the release) or LF."""
    path = root / QUERY_FILE
    lines = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{path}:{number}"
        try:
            pid, x, y, w, h, frame = fields
            box = (float(x), float(y), float(w), float(h))
            lines.append(QueryLine(int(float(pid)), box, frame.removesuffix(".jpg"), where))
        except ValueError as e:
            raise ValueError(f"{where}: expected 'pid x y w h frame', got {line!r}") from e
    return lines
