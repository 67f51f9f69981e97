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
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from person_search.data.datasets.annotations import KEPT, AnnotationTable
from person_search.data.datasets.common import read_text, xywh_to_xyxy
from person_search.data.datasets.records import make_records
from person_search.schema import UNLABELED_PID

SPLIT_RULES = ("sequence", "identity")
_SEQUENCE_INFO, _GROUND_TRUTH = "seqinfo.ini", Path("gt", "gt.txt")
_EXPECTED = """\
  <folder>/
    <sequence>/
      seqinfo.ini        [Sequence] name, imDir, frameRate, seqLength, imWidth, imHeight, imExt
      gt/gt.txt          frame,track,left,top,width,height,flag,class,visibility
      img1/000001.jpg    frames, numbered from 1"""
_MOT16_COLUMNS = 9  # MOT15 has 10, with a position in space

_Person = int | str


@dataclass(frozen=True)
class MotOptions:
    """Selection and split of MOT sequences.

    Attributes:
        every: Takes every n-th frame; 0: one per second.
        classes: Classes whose tracks are identities; 1 is a pedestrian.
        unlabeled_classes: Classes that are persons without identity: 2 is on a vehicle, 7 does not
            move. Boxes of other classes are omitted.
        min_visibility: Minimum visible part of a person, 0 to 1.
        split: ``sequence``, ``identity``, or empty: by sequence if there are at least two.
        test_sequences: Names of test sequences; empty: the last ones.
        test_share: Share of sequences or identities to test on.
        global_ids: Whether a track number means the same person in all sequences.
    """

    every: int = 0
    classes: tuple[int, ...] = (1,)
    unlabeled_classes: tuple[int, ...] = (2, 7)
    min_visibility: float = 0.25
    split: str = ""
    test_sequences: tuple[str, ...] = ()
    test_share: float = 0.5
    global_ids: bool = False

    def __post_init__(self) -> None:
        if self.split and self.split not in SPLIT_RULES:
            raise ValueError(f"split is {self.split!r}; allowed: {SPLIT_RULES}")
        if self.every < 0 or not 0 <= self.min_visibility <= 1 or not 0 < self.test_share < 1:
            raise ValueError(
                f"every is {self.every} (0 or more), min_visibility {self.min_visibility} (0 to "
                f"1), test_share {self.test_share} (between 0 and 1)"
            )


@dataclass(frozen=True)
class _Frame:
    """A sampled frame and its boxes (XYXY, from 0); a person of None is unlabeled."""

    sequence: int
    path: Path
    image_size: tuple[int, int]
    time: float  # 0 at the start of the sequence, 1 at its end
    boxes: np.ndarray
    persons: list[_Person | None]


def load_mot(
    folder: str | Path, options: MotOptions, report: Callable[[str], None] = lambda text: None
) -> dict[str, tuple[list[dict], list[_Person]]]:
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
    rule = options.split or ("sequence" if len(folders) > 1 else "identity")
    if rule == "sequence":
        tested, persons = _split_by_sequence(frames, [path.name for path in folders], options)
    else:
        tested, persons = _split_by_identity(frames, options)
    result: dict[str, tuple[list[dict], list[_Person]]] = {}
    for name in ("train", "test"):
        chosen = [f for f, test in zip(frames, tested, strict=True) if test == (name == "test")]
        if not chosen or not persons[name]:
            raise ValueError(
                f"{folder}: the {name} split by {rule} would have {len(chosen)} frames with "
                f"{len(persons[name])} identities; choose another split or share, or take more "
                "frames (every)"
            )
        start = 0 if name == "train" else len(result["train"][0])
        result[name] = _make_records(chosen, start, persons[name]), persons[name]
    return result


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


def _read_frames(folder: Path, number: int, options: MotOptions) -> list[_Frame]:
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

    def person(row: int) -> _Person | None:
        if not labeled[row]:
            return None
        return int(track[row]) if options.global_ids else f"{folder.name}/{track[row]}"

    numbers = sorted(paths)
    frames = []
    for place in range(0, len(numbers), options.every or max(round(info["frameRate"]), 1)):
        rows = rows_of.get(numbers[place], [])
        frames.append(
            _Frame(
                sequence=number,
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


def _persons(frames: Sequence[_Frame]) -> list[_Person]:
    """Returns the identities in order of appearance."""
    return list(dict.fromkeys(p for frame in frames for p in frame.persons if p is not None))


def _split_by_sequence(
    frames: list[_Frame], names: list[str], options: MotOptions
) -> tuple[list[bool], dict[str, list]]:
    """Returns whether each frame is for testing, and the identities of each split."""
    unknown = sorted(set(options.test_sequences) - set(names))
    if unknown:
        raise ValueError(f"test_sequences: {unknown} are not among the sequences {names}")
    count = min(max(math.ceil(options.test_share * len(names)), 1), max(len(names) - 1, 1))
    chosen = set(options.test_sequences) or set(names[-count:])
    tested = [names[frame.sequence - 1] in chosen for frame in frames]
    train = _persons([f for f, test in zip(frames, tested, strict=True) if not test])
    test = _persons([f for f, test in zip(frames, tested, strict=True) if test])
    # a person with a global number may be in both splits and counts as a training identity
    return tested, {"train": train, "test": [p for p in test if p not in set(train)]}


def _split_by_identity(
    frames: list[_Frame], options: MotOptions
) -> tuple[list[bool], dict[str, list]]:
    """Returns whether each frame is for testing, and the identities of each split.

    Persons that appear late are tested on. A frame belongs to the split of most of its persons; the
    others in it are unlabeled, as training identities in the test frames of PRW.
    """
    times: dict[_Person, list[float]] = {}
    for frame in frames:
        for person in frame.persons:
            if person is not None:
                times.setdefault(person, []).append(frame.time)
    order = sorted(times, key=lambda person: float(np.mean(times[person])))
    count = min(max(round((1 - options.test_share) * len(order)), 1), max(len(order) - 1, 1))
    known = set(order[:count])
    tested = []
    for frame in frames:
        labeled = [person in known for person in frame.persons if person is not None]
        balance = sum(1 if is_known else -1 for is_known in labeled)
        tested.append(balance < 0 if balance else frame.time >= 1 - options.test_share)
    train = [f for f, test in zip(frames, tested, strict=True) if not test]
    test = [f for f, test in zip(frames, tested, strict=True) if test]
    return tested, {
        "train": [person for person in _persons(train) if person in known],
        "test": [person for person in _persons(test) if person not in known],
    }


def _make_records(frames: list[_Frame], start: int, persons: list[_Person]) -> list[dict]:
    """Creates the records of a split, without queries."""
    label_of: dict[_Person | None, int] = {person: row for row, person in enumerate(persons)}
    boxes = np.concatenate([frame.boxes for frame in frames])
    sizes = np.array([frame.image_size for frame in frames])
    paths = [str(frame.path) for frame in frames]
    labels = [label_of.get(p, UNLABELED_PID) for frame in frames for p in frame.persons]
    table = AnnotationTable(
        image_ids=start + np.arange(len(frames)),
        names=paths,
        sizes=sizes,
        cam_ids=np.array([frame.sequence for frame in frames]),
        boxes=boxes,
        box_image=np.repeat(np.arange(len(frames)), [len(frame.boxes) for frame in frames]),
        labels=np.array(labels, np.int32),
        left_out=np.full(len(boxes), KEPT, np.uint8),
        num_pids=len(persons),
    )
    return make_records(table, paths, sizes)
