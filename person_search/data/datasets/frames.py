# SPDX-License-Identifier: Apache-2.0
"""Labeled frames: what the converters of MOT sequences and of annotation tools produce.

Frames are split into training and test data, and become records.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from person_search.data.datasets.annotations import KEPT, NO_CAMERA, AnnotationTable
from person_search.data.datasets.records import make_records
from person_search.schema import UNLABELED_PID

Person = int | str
Split = tuple[list[dict], list[Person]]
"""Records of a split, and the names of the identities 0, 1, ..."""
SPLIT_RULES = ("sequence", "identity")


@dataclass(frozen=True)
class LabeledFrame:
    """A frame and its boxes.

    Attributes:
        sequence: Index of its sequence.
        path: Image file.
        image_size: Height and width; (0, 0) if unknown.
        time: 0 at the start of the sequence, 1 at its end.
        boxes: (N, 4) XYXY, counted from 0.
        persons: N identities; None for an unlabeled person.
        camera: Number of the camera, or None.
    """

    sequence: int
    path: Path
    image_size: tuple[int, int]
    time: float
    boxes: np.ndarray
    persons: list[Person | None]
    camera: int | None = None


@dataclass(frozen=True)
class SplitOptions:
    """How to split frames into training and test data.

    Attributes:
        split: ``sequence``, ``identity``, or empty: by sequence if there are at least two.
        test_sequences: Names of test sequences; empty: the last ones.
        test_share: Share of sequences or identities to test on.
    """

    split: str = ""
    test_sequences: tuple[str, ...] = ()
    test_share: float = 0.5

    def __post_init__(self) -> None:
        if self.split and self.split not in SPLIT_RULES:
            raise ValueError(f"split is {self.split!r}; allowed: {SPLIT_RULES}")
        if not 0 < self.test_share < 1:
            raise ValueError(f"test_share {self.test_share} (between 0 and 1)")


def split_frames(
    frames: list[LabeledFrame], names: list[str], options: SplitOptions, source: str | Path
) -> dict[str, Split]:
    """Splits frames into a training and a test set.

    Args:
        frames: All frames.
        names: Names of the sequences.
        options: How to split.
        source: Where the frames come from, for messages.

    Returns:
        For ``train`` and ``test``: records (``image_id`` continues from split to split) and the
        names of the identities. The splits share neither frames nor identities.

    Raises:
        ValueError: If a split is empty.
    """
    rule = options.split or ("sequence" if len(names) > 1 else "identity")
    if rule == "sequence":
        tested, persons = _split_by_sequence(frames, names, options)
    else:
        tested, persons = _split_by_identity(frames, options)
    result: dict[str, Split] = {}
    for name in ("train", "test"):
        chosen = [f for f, test in zip(frames, tested, strict=True) if test == (name == "test")]
        if not chosen or not persons[name]:
            raise ValueError(
                f"{source}: the {name} split by {rule} would have {len(chosen)} frames with "
                f"{len(persons[name])} identities; choose another split or share, or take more "
                "frames (every)"
            )
        start = 0 if name == "train" else len(result["train"][0])
        result[name] = records_of(chosen, persons[name], start), persons[name]
    return result


def persons_of(frames: Sequence[LabeledFrame]) -> list[Person]:
    """Returns the identities in order of appearance."""
    return list(dict.fromkeys(p for frame in frames for p in frame.persons if p is not None))


def _split_by_sequence(
    frames: list[LabeledFrame], names: list[str], options: SplitOptions
) -> tuple[list[bool], dict[str, list]]:
    """Returns whether each frame is for testing, and the identities of each split."""
    unknown = sorted(set(options.test_sequences) - set(names))
    if unknown:
        raise ValueError(f"test_sequences: {unknown} are not among the sequences {names}")
    count = min(max(math.ceil(options.test_share * len(names)), 1), max(len(names) - 1, 1))
    chosen = set(options.test_sequences) or set(names[-count:])
    tested = [names[frame.sequence] in chosen for frame in frames]
    train = persons_of([f for f, test in zip(frames, tested, strict=True) if not test])
    test = persons_of([f for f, test in zip(frames, tested, strict=True) if test])
    # a person with a global number may be in both splits and counts as a training identity
    return tested, {"train": train, "test": [p for p in test if p not in set(train)]}


def _split_by_identity(
    frames: list[LabeledFrame], options: SplitOptions
) -> tuple[list[bool], dict[str, list]]:
    """Returns whether each frame is for testing, and the identities of each split.

    Persons that appear late are tested on. A frame belongs to the split of most of its persons; the
    others in it are unlabeled, as training identities in the test frames of PRW.
    """
    times: dict[Person, list[float]] = {}
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
        "train": [person for person in persons_of(train) if person in known],
        "test": [person for person in persons_of(test) if person not in known],
    }


def records_of(
    frames: Sequence[LabeledFrame], persons: Sequence[Person], start: int = 0
) -> list[dict]:
    """Creates records without queries.

    Args:
        frames: Frames, at least one.
        persons: Names of the identities; others are unlabeled.
        start: First ``image_id``.
    """
    label_of: dict[Person | None, int] = {person: row for row, person in enumerate(persons)}
    boxes = np.concatenate([frame.boxes.reshape(-1, 4) for frame in frames])
    sizes = np.array([frame.image_size for frame in frames])
    paths = [str(frame.path) for frame in frames]
    labels = [label_of.get(p, UNLABELED_PID) for frame in frames for p in frame.persons]
    cameras = [NO_CAMERA if frame.camera is None else frame.camera for frame in frames]
    table = AnnotationTable(
        image_ids=start + np.arange(len(frames)),
        names=paths,
        sizes=sizes,
        cam_ids=np.array(cameras),
        boxes=boxes,
        box_image=np.repeat(np.arange(len(frames)), [len(frame.boxes) for frame in frames]),
        labels=np.array(labels, np.int32),
        left_out=np.full(len(boxes), KEPT, np.uint8),
        num_pids=len(persons),
    )
    return make_records(table, paths, sizes)
