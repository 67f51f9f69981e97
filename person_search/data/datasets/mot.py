# SPDX-License-Identifier: Apache-2.0
"""MOT-challenge sequences as person search data: a track is an identity, a sequence a camera.

Tracks of different sequences are different people, unless the numbers are said to be global, as in
data recorded with several cameras at once.

Shape shorthand: N boxes of all sequences.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from person_search.data.datasets.common import make_annotation, xywh_to_xyxy
from person_search.data.datasets.mot_files import MotSequence, find_sequences, read_sequence
from person_search.schema import UNLABELED_PID

SPLIT_RULES = ("sequence", "identity")


@dataclass(frozen=True)
class MotOptions:
    """What to take from the sequences, and how to split it.

    Args:
        every: take every n-th frame; 0: one per second.
        classes: classes whose tracks are identities; 1 is a pedestrian.
        unlabeled_classes: classes that are people without identity: 2 sits on a vehicle, 7 does not
            move. Boxes of other classes are left out.
        min_visibility: boxes of people of whom less is seen are left out.
        split: ``sequence``, ``identity``, or empty: by sequence if there are two or more.
        test_sequences: names; empty: the last ones.
        test_share: share of sequences or of identities to be tested on.
        global_ids: whether a track number means the same person in all sequences.
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
    """A sampled frame with the boxes that are left in it; a person of None is unlabelled."""

    sequence: int
    path: Path
    image_size: tuple[int, int]
    time: float  # 0 at the start of the sequence, 1 at its end
    boxes: np.ndarray
    persons: list[int | str | None]


def load_mot(
    folder: str | Path, options: MotOptions, report: Callable[[str], None] = lambda text: None
) -> dict[str, tuple[list[dict], list[int | str]]]:
    """Reads MOT sequences as a training and a test split.

    Args:
        folder: holds sequences, or is one.
        options: what to take.
        report: is told what comes next.

    Returns:
        ``train`` and ``test``: records (``image_id`` counts on from split to split, ``cam_id`` is
        the number of the sequence, from 1), and what the identities 0, 1, ... are called. No frame
        and no identity is in both.

    Raises:
        FileNotFoundError, ValueError: see :mod:`person_search.data.datasets.mot_files`, or one
            split would be empty.
    """
    folders = find_sequences(Path(folder))
    frames = []
    for number, path in enumerate(folders, start=1):
        report(f"reading {path.name}")
        frames += _sample(read_sequence(path), number, options)
    rule = options.split or ("sequence" if len(folders) > 1 else "identity")
    if rule == "sequence":
        side = _split_by_sequence(frames, [path.name for path in folders], options)
    else:
        side = _split_by_identity(frames, options)
    result: dict[str, tuple[list[dict], list[int | str]]] = {}
    for name in ("train", "test"):
        chosen = [frame for frame, tested in zip(frames, side[0], strict=True)
                  if tested == (name == "test")]  # fmt: skip
        start = 0 if name == "train" else len(result["train"][0])
        result[name] = _make_records(chosen, start, side[1][name])
        if not result[name][0] or not result[name][1]:
            raise ValueError(
                f"{folder}: the {name} split by {rule} would hold {len(result[name][0])} frames "
                f"with {len(result[name][1])} identities: choose another split or share, or take "
                "more frames (every)"
            )
    return result


def _sample(sequence: MotSequence, number: int, options: MotOptions) -> list[_Frame]:
    """Returns every n-th frame of a sequence with the boxes that the options leave."""
    step = options.every or max(round(sequence.frame_rate), 1)
    height, width = sequence.image_size
    boxes = xywh_to_xyxy(sequence.boxes) - 1  # the file's pixels count from 1
    boxes = np.clip(boxes, 0, [width, height, width, height])
    labeled = (np.isin(sequence.kind, options.classes) | (sequence.kind < 0)) & sequence.flag
    kept = labeled | np.isin(sequence.kind, options.unlabeled_classes)
    kept &= sequence.visibility >= options.min_visibility
    kept &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    rows_of: dict[int, list[int]] = {}
    for row in np.flatnonzero(kept).tolist():
        rows_of.setdefault(int(sequence.frame[row]), []).append(row)
    numbers = sorted(sequence.frames)
    frames = []
    for place in range(0, len(numbers), step):
        rows = rows_of.get(numbers[place], [])
        persons: list[int | str | None] = [
            None if not labeled[row]
            else int(sequence.track[row]) if options.global_ids
            else f"{sequence.name}/{sequence.track[row]}"
            for row in rows
        ]  # fmt: skip
        frames.append(
            _Frame(
                sequence=number,
                path=sequence.frames[numbers[place]],
                image_size=sequence.image_size,
                time=place / len(numbers),
                boxes=boxes[rows],
                persons=persons,
            )
        )
    return frames


def _persons(frames: Sequence[_Frame]) -> list[int | str]:
    """Returns the identities in the order in which they appear."""
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
    # a person of global number may be in both; it is known from training then
    known = set(train)
    test = [p for p in _persons([f for f, t in zip(frames, tested, strict=True) if t])
            if p not in known]  # fmt: skip
    return tested, {"train": train, "test": test}


def _split_by_identity(
    frames: list[_Frame], options: MotOptions
) -> tuple[list[bool], dict[str, list]]:
    """Returns whether each frame is for testing, and the identities of each split.

    Who appears late is tested on. A frame goes where most of its people belong; the others in it
    are unlabelled, as PRW does with training identities in test frames.
    """
    times: dict[int | str, list[float]] = {}
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


def _make_records(
    frames: list[_Frame], start: int, persons: list[int | str]
) -> tuple[list[dict], list[int | str]]:
    """Returns the records of a split, without queries, and the identities."""
    label_of: dict[int | str | None, int] = {person: label for label, person in enumerate(persons)}
    records = [
        {
            "file_name": str(frame.path),
            "image_id": start + place,
            "height": frame.image_size[0],
            "width": frame.image_size[1],
            "cam_id": frame.sequence,
            "annotations": [
                make_annotation(box, label_of.get(person, UNLABELED_PID))
                for box, person in zip(frame.boxes, frame.persons, strict=True)
            ],
        }
        for place, frame in enumerate(frames)
    ]
    return records, persons
