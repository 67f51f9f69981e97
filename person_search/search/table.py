# SPDX-License-Identifier: Apache-2.0
"""Images of a gallery by columns, which of them may be found, and what is found.

Shape shorthand in this file: P images and frames.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from person_search.search.segment import Entry


@dataclass(frozen=True)
class SearchFilter:
    """Which persons may be found.

    Args:
        min_score: of the detection.
        cameras: names; empty for all.
        since, until: seconds since 1970, both included; None for no bound. With either, images
            of unknown time are left out.
        min_similarity: to the query; None for no bound. docs/search.md says how to choose it.
    """

    min_score: float = 0.0
    cameras: frozenset[str] = frozenset()
    since: float | None = None
    until: float | None = None
    min_similarity: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"the lowest score is {self.min_score:g}; scores are from 0 to 1.")
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ValueError(
                f"the time begins at {format_time(self.since)} and ends before that, at "
                f"{format_time(self.until)}."
            )
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise ValueError(
                f"the lowest similarity is {self.min_similarity:g}; similarities are from -1 to 1."
            )

    def to_json(self) -> dict:
        """Plain types; None for no bound."""
        return {
            "min_score": self.min_score,
            "cameras": sorted(self.cameras),
            "since": None if self.since is None else format_time(self.since),
            "until": None if self.until is None else format_time(self.until),
            "min_similarity": self.min_similarity,
        }

    def describe(self) -> str:
        """In words, e.g. "camera gate, from 2026-05-01 08:00:00 on"; "" if nothing is asked for."""
        parts = []
        if self.cameras:
            names = sorted(self.cameras)
            parts.append(f"{'camera' if len(names) == 1 else 'cameras'} {', '.join(names)}")
        if self.since is not None:
            parts.append(f"from {format_time(self.since)} on")
        if self.until is not None:
            parts.append(f"until {format_time(self.until)}")
        if self.min_score > 0:
            parts.append(f"detection score at least {self.min_score:g}")
        if self.min_similarity is not None:
            parts.append(f"similarity at least {self.min_similarity:g}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Match:
    """One person found: where, when, how sure the detector is, and how similar to the query.

    Args:
        rank: 1 is best.
        path: the image or video, as an absolute path.
        box: XYXY pixels.
        score: of the detection, in [0, 1].
        sim: cosine similarity in [-1, 1].
        image: its number in the gallery.
        frame, offset: of a video: index of the frame, and seconds from the start.
        time: seconds since 1970, None if unknown. camera: "" if unknown.
    """

    rank: int
    path: str
    box: tuple[float, float, float, float]
    score: float
    sim: float
    picture: int = 0
    frame: int | None = None
    offset: float | None = None
    time: float | None = None
    camera: str = ""

    def to_json(self) -> dict:
        """Plain types, boxes to a tenth of a pixel; what is unknown is left out."""
        known = {
            "frame": self.frame,
            "offset": None if self.offset is None else round(self.offset, 3),
            "time": None if self.time is None else format_time(self.time),
            "camera": self.camera or None,
        }
        return {
            "rank": self.rank,
            "image": self.path,
            "box": [round(v, 1) for v in self.box],
            "score": round(self.score, 4),
            "similarity": round(self.sim, 4),
            **{key: value for key, value in known.items() if value is not None},
        }


def count(number: int, noun: str, nouns: str = "") -> str:
    """A number with its noun, e.g. "1 image" and "2 images"."""
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


def format_time(seconds: float) -> str:
    """ISO 8601 without a zone: times are those of the cameras' clocks, see docs/search.md."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(" ", "seconds")


@dataclass
class ImageTable:
    """The images and frames of a gallery by columns, which takes a fraction of P objects."""

    paths: list[str] = field(default_factory=list)
    roots: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    frames: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # -1: an image
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(0))  # nan: an image
    times: np.ndarray = field(default_factory=lambda: np.zeros(0))  # nan: unknown
    cameras: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    camera_names: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "ImageTable":
        """Builds the columns."""
        entries = list(entries)
        names = sorted({entry.camera for entry in entries})
        code = {name: number for number, name in enumerate(names)}
        shared: dict[str, str] = {}  # the frames of a video share the text of its path

        def floats(values: Iterable[float | None]) -> np.ndarray:
            return np.array([np.nan if v is None else v for v in values], np.float64)

        return cls(
            paths=[shared.setdefault(entry.path, entry.path) for entry in entries],
            roots=np.array([entry.root for entry in entries], np.int32),
            frames=np.array([-1 if e.frame is None else e.frame for e in entries], np.int64),
            offsets=floats(entry.offset for entry in entries),
            times=floats(entry.time for entry in entries),
            cameras=np.array([code[entry.camera] for entry in entries], np.int32),
            camera_names=names,
        )

    def __len__(self) -> int:
        return len(self.paths)

    def allowed(self, wanted: SearchFilter) -> np.ndarray:
        """(P,) bool: the images that pass by time and camera."""
        mask = np.ones(len(self), bool)
        if wanted.cameras:
            codes = [i for i, name in enumerate(self.camera_names) if name in wanted.cameras]
            mask &= np.isin(self.cameras, codes)
        if wanted.since is not None:
            mask &= self.times >= wanted.since  # False for nan
        if wanted.until is not None:
            mask &= self.times <= wanted.until
        return mask
