# SPDX-License-Identifier: Apache-2.0
"""The files of a MOT-challenge sequence: ``seqinfo.ini``, ``gt/gt.txt`` and the folder of frames.

``gt.txt`` has one line per box: frame, track, left, top, width, height, flag, class, visibility
(MOT16, 17, 20), or frame, track, left, top, width, height, flag, x, y, z (MOT15, without class and
visibility). Frames, tracks and pixels count from 1; a flag of 0 takes a box out of the benchmark.

Shape shorthand: N boxes of a sequence.
"""

import configparser
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SEQUENCE_INFO, GROUND_TRUTH = "seqinfo.ini", Path("gt", "gt.txt")
EXPECTED = """\
  <folder>/
    <sequence>/
      seqinfo.ini        [Sequence] name, imDir, frameRate, seqLength, imWidth, imHeight, imExt
      gt/gt.txt          frame,track,left,top,width,height,flag,class,visibility
      img1/000001.jpg    frames, numbered from 1"""
_CLASSES = 9  # columns of MOT16 and later; MOT15 has 10, with a position in space


@dataclass(frozen=True)
class MotSequence:
    """One sequence.

    Args:
        name: of its folder.
        frames: number -> image.
        frame_rate: frames per second.
        image_size: (height, width).
        frame: (N,) int64 frame number.
        track: (N,) int64.
        boxes: (N, 4) left, top, width, height; pixels counted from 1, as in the file.
        flag: (N,) bool, False for a box that is out of the benchmark.
        kind: (N,) int64 class; 1 is a pedestrian. -1 where the file tells no class.
        visibility: (N,) 0 to 1; 1 where the file does not tell.
    """

    name: str
    frames: dict[int, Path]
    frame_rate: float
    image_size: tuple[int, int]
    frame: np.ndarray
    track: np.ndarray
    boxes: np.ndarray
    flag: np.ndarray
    kind: np.ndarray
    visibility: np.ndarray


def find_sequences(folder: Path) -> list[Path]:
    """Returns the sequences in a folder, sorted by name; the folder itself may be one.

    Raises:
        FileNotFoundError: there is none with a ground truth.
    """
    if (folder / GROUND_TRUTH).is_file():
        return [folder]
    found = sorted(path.parent.parent for path in folder.glob(f"*/{GROUND_TRUTH.as_posix()}"))
    if not found:
        raise FileNotFoundError(
            f"no MOT sequence with a {GROUND_TRUTH.as_posix()} was found in {folder}. "
            f"Expected:\n{EXPECTED}\nThe test sequences of the challenge come without ground truth."
        )
    return found


def read_sequence(folder: Path) -> MotSequence:
    """Reads one sequence.

    Raises:
        FileNotFoundError: ``seqinfo.ini`` or the frames are missing.
        ValueError: a file holds something else than expected; file and line are named.
    """
    info = _read_info(folder / SEQUENCE_INFO)
    pictures = folder / info["imDir"]
    frames = {
        int(path.stem): path
        for path in sorted(pictures.glob(f"*{info['imExt']}"))
        if path.stem.isdecimal()
    }
    if not frames:
        raise FileNotFoundError(f"{pictures} holds no frames 000001{info['imExt']}, ...")
    table = _read_table(folder / GROUND_TRUTH)
    strange = sorted(set(table[:, 0].astype(np.int64).tolist()) - set(frames))
    if strange:
        raise FileNotFoundError(
            f"{folder / GROUND_TRUTH} has boxes in {len(strange)} frames whose images are not in "
            f"{pictures}, e.g. frame {strange[0]}"
        )
    known = table.shape[1] == _CLASSES
    return MotSequence(
        name=folder.name,
        frames=frames,
        frame_rate=info["frameRate"],
        image_size=(info["imHeight"], info["imWidth"]),
        frame=table[:, 0].astype(np.int64),
        track=table[:, 1].astype(np.int64),
        boxes=table[:, 2:6],
        flag=table[:, 6] != 0,
        kind=table[:, 7].astype(np.int64) if known else np.full(len(table), -1),
        visibility=table[:, 8] if known else np.ones(len(table)),
    )


def _read_info(path: Path) -> dict:
    """Returns imDir, imExt, frameRate, imHeight and imWidth of a ``seqinfo.ini``."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Expected:\n{EXPECTED}")
    parser = configparser.ConfigParser()
    try:
        parser.read_string(path.read_text())
        section = parser["Sequence"]
        numbers = {
            "frameRate": section.getfloat("frameRate"),
            "imHeight": section.getint("imHeight"),
            "imWidth": section.getint("imWidth"),
        }
    except (configparser.Error, KeyError, ValueError) as e:
        raise ValueError(f"{path}: not the description of a MOT sequence: {e}") from e
    for key, value in numbers.items():
        if value is None or value <= 0:
            raise ValueError(f"{path}: {key} is {value}; a positive number is expected")
    names = {"imDir": section.get("imDir", "img1"), "imExt": section.get("imExt", ".jpg")}
    return names | numbers


def _read_table(path: Path) -> np.ndarray:
    """Returns (N, 7 to 10) float64, a row per line."""
    rows: list[list[float]] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = [float(value) for value in line.split(",")]
        except ValueError as e:
            raise ValueError(f"{path}:{number}: numbers are expected, got {line!r}") from e
        if not 7 <= len(row) <= 10 or (rows and len(row) != len(rows[0])):
            raise ValueError(
                f"{path}:{number}: {len(row)} columns; expected are frame, track, left, top, "
                "width, height, flag, class, visibility, and as many in every line"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no boxes")
    table = np.array(rows, np.float64)
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(bad):
        raise ValueError(f"{path}: box {bad[0] + 1} holds a number that is not finite")
    return table
