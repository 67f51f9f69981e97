# SPDX-License-Identifier: Apache-2.0
"""Reads MOT-challenge sequences as person search data: tracks are identities, sequences cameras.

A sequence has ``seqinfo.ini``, ``gt/gt.txt`` and a folder of frames. ``gt.txt`` has one line per
box: frame, track, left, top, width, height, flag, class, visibility (MOT16, 17, 20), or frame,
track, left, top, width, height, flag, x, y, z (MOT15, without class and visibility). Frames, tracks
and pixels count from 1; a flag of 0 excludes a box from the benchmark.

Tracks of different sequences are different persons, unless track numbers are declared global, as in
data recorded with several cameras at once.

Shape shorthand: N boxes of a sequence.
"""

import configparser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from person_search.data.datasets.common import read_text, xywh_to_xyxy
from person_search.data.datasets.frames import (
    LabeledFrame,
    Person,
    Split,
    SplitOptions,
    split_frames,
)

_SEQUENCE_INFO, _GROUND_TRUTH = "seqinfo.ini", Path("gt", "gt.txt")
_EXPECTED = """\
  <folder>/
    <sequence>/
      seqinfo.ini        [Sequence] name, imDir, frameRate, seqLength, imWidth, imHeight, imExt
      gt/gt.txt          frame,track,left,top,width,height,flag,class,visibility
      img1/000001.jpg    frames, numbered from 1"""
_MOT16_COLUMNS = 9  # MOT15 has 10, with a position in space


@dataclass(frozen=True)
class MotOptions(SplitOptions):
    """Selection and split of MOT sequences.

    Attributes:
        every: Takes every n-th frame; 0: one per second.
        classes: Classes whose tracks are identities; 1 is a pedestrian.
        unlabeled_classes: Classes that are persons without identity: 2 is on a vehicle, 7 does not
            move. Boxes of other classes are omitted.
        min_visibility: Minimum visible part of a person, 0 to 1.
        global_ids: Whether a track number means the same person in all sequences.
    """

    every: int = 0
    classes: tuple[int, ...] = (1,)
    unlabeled_classes: tuple[int, ...] = (2, 7)
    min_visibility: float = 0.25
    global_ids: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 0 or not 0 <= self.min_visibility <= 1:
            raise ValueError(
                f"every is {self.every} (0 or more), min_visibility {self.min_visibility} (0 to 1)"
            )


def load_mot(
    folder: str | Path, options: MotOptions, report: Callable[[str], None] = lambda text: None
) -> dict[str, Split]:
    """Loads MOT sequences as a training and a test split.

    Args:
        folder: Folder of sequences, or one sequence.
        options: Selection and split.
        report: Receives a description of each step.

    Returns:
        For ``train`` and ``test``: records (``image_id`` continues from split to split, ``cam_id``
        is the number of the sequence, from 1), and the names of the identities 0, 1, ... The splits
        share neither frames nor identities.

    Raises:
        FileNotFoundError: If there is no sequence with ground truth, or files are missing.
        ValueError: If a file has unexpected content (names file and line), or a split is empty.
    """
    folders = _find_sequences(Path(folder))
    frames = []
    for number, path in enumerate(folders, start=1):
        report(f"reading {path.name}")
        frames += _read_frames(path, number, options)
    return split_frames(frames, [path.name for path in folders], options, folder)


def _find_sequences(folder: Path) -> list[Path]:
    if (folder / _GROUND_TRUTH).is_file():
        return [folder]
    found = sorted(path.parent.parent for path in folder.glob(f"*/{_GROUND_TRUTH.as_posix()}"))
    if not found:
        raise FileNotFoundError(
            f"no MOT sequence with a {_GROUND_TRUTH.as_posix()} was found in {folder}. Expected:\n"
            f"{_EXPECTED}\nThe test sequences of the challenge have no ground truth."
        )
    return found


def _read_frames(folder: Path, number: int, options: MotOptions) -> list[LabeledFrame]:
    """Returns the selected frames and boxes of a sequence with the given number."""
    info = _read_info(folder / _SEQUENCE_INFO)
    image_folder = folder / info["imDir"]
    paths = {
        int(path.stem): path
        for path in sorted(image_folder.glob(f"*{info['imExt']}"))
        if path.stem.isdecimal()
    }
    if not paths:
        raise FileNotFoundError(f"{image_folder} has no frames 000001{info['imExt']}, ...")
    table = _read_table(folder / _GROUND_TRUTH)
    frame, track = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    unknown = sorted(set(frame.tolist()) - set(paths))
    if unknown:
        raise FileNotFoundError(
            f"{folder / _GROUND_TRUTH} has boxes in {len(unknown)} frames whose images are not in "
            f"{image_folder}, e.g. frame {unknown[0]}"
        )
    height, width = info["imHeight"], info["imWidth"]
    boxes = xywh_to_xyxy(table[:, 2:6]) - 1  # the pixels of the file count from 1
    boxes = np.clip(boxes, 0, [width, height, width, height])
    labeled, kept = table[:, 6] != 0, (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if table.shape[1] == _MOT16_COLUMNS:
        kind = table[:, 7].astype(np.int64)
        labeled &= np.isin(kind, options.classes)
        kept &= labeled | np.isin(kind, options.unlabeled_classes)
        kept &= table[:, 8] >= options.min_visibility
    else:
        kept &= labeled
    rows_of: dict[int, list[int]] = {}
    for row in np.flatnonzero(kept).tolist():
        rows_of.setdefault(int(frame[row]), []).append(row)

    def person(row: int) -> Person | None:
        if not labeled[row]:
            return None
        return int(track[row]) if options.global_ids else f"{folder.name}/{track[row]}"

    numbers = sorted(paths)
    frames = []
    for place in range(0, len(numbers), options.every or max(round(info["frameRate"]), 1)):
        rows = rows_of.get(numbers[place], [])
        frames.append(
            LabeledFrame(
                sequence=number - 1,
                camera=number,
                path=paths[numbers[place]],
                image_size=(height, width),
                time=place / len(numbers),
                boxes=boxes[rows],
                persons=[person(row) for row in rows],
            )
        )
    return frames


def _read_info(path: Path) -> dict:
    """Returns imDir, imExt, frameRate, imHeight and imWidth of a ``seqinfo.ini``."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Expected:\n{_EXPECTED}")
    parser = configparser.ConfigParser()
    content = read_text(path)
    try:
        parser.read_string(content)
        section = parser["Sequence"]
        numbers = {
            "frameRate": section.getfloat("frameRate"),
            "imHeight": section.getint("imHeight"),
            "imWidth": section.getint("imWidth"),
        }
    except (configparser.Error, KeyError, ValueError) as e:
        raise ValueError(f"{path} does not describe a MOT sequence: {e}") from e
    for key, value in numbers.items():
        if value is None or value <= 0:
            raise ValueError(f"{path}: {key} is {value}; a positive number is expected")
    names = {"imDir": section.get("imDir", "img1"), "imExt": section.get("imExt", ".jpg")}
    return names | numbers


def _read_table(path: Path) -> np.ndarray:
    """Returns (N, 7 to 10) float64, a row per line."""
    rows: list[list[float]] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = [float(value) for value in line.split(",")]
        except ValueError as e:
            raise ValueError(f"{path}:{number}: numbers are expected, got {line!r}") from e
        if not 7 <= len(row) <= 10 or (rows and len(row) != len(rows[0])):
            raise ValueError(
                f"{path}:{number}: {len(row)} columns; expected are frame, track, left, top, "
                "width, height, flag, class, visibility, and the same number in every line"
            )
        if not np.isfinite(row).all():
            raise ValueError(f"{path}:{number}: a number is not finite")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} contains no boxes")
    return np.array(rows, np.float64)
