# SPDX-License-Identifier: Apache-2.0
"""Images of a gallery by columns, filters, and matches.

Shape shorthand: P images and frames.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from person_search.search.entries import Entry


@dataclass(frozen=True)
class SearchFilter:
    """Which persons may be found.

    Attributes:
        min_score: Minimum detection score, in [0, 1].
        cameras: Names of the cameras; empty for all.
        since: Earliest time in seconds since 1970, inclusive; None for no bound. With a time
            bound, images of unknown time are excluded.
        until: Latest time, as ``since``.
        min_similarity: Minimum similarity to the query, in [-1, 1]; None for no bound.
            docs/search.md explains how to choose it.
    """

    min_score: float = 0.0
    cameras: frozenset[str] = frozenset()
    since: float | None = None
    until: float | None = None
    min_similarity: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"the minimum score is {self.min_score:g}; scores are in [0, 1].")
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ValueError(
                f"the time range starts at {format_time(self.since)} and ends before that, at "
                f"{format_time(self.until)}."
            )
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise ValueError(
                f"the minimum similarity is {self.min_similarity:g}; similarities are in [-1, 1]."
            )

    def to_json(self) -> dict:
        """Returns plain types; None for no bound."""
        return {
            "min_score": self.min_score,
            "cameras": sorted(self.cameras),
            "since": None if self.since is None else format_time(self.since),
            "until": None if self.until is None else format_time(self.until),
            "min_similarity": self.min_similarity,
        }

    def describe(self) -> str:
        """Returns, for example, "camera gate, from 2026-05-01 08:00:00 on"; "" for no filter."""
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


class ImageKey(str):
    """Identifies an image or frame of an opened gallery; only the gallery knows its meaning."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """An image or frame of a gallery.

    Attributes:
        key: Its key.
        root: Number of the indexed folder.
        path: Path within that folder, with ``/``.
        frame: Index of the frame; None for an image.
        offset: Seconds of the frame from the start of the video; None for an image.
        time: Seconds since 1970; None if unknown.
        camera: Camera name; "" if unknown.
        file_state: File size in bytes and modification time in ns.
        size: Height and width in pixels; 0 if unknown.
    """

    key: ImageKey
    root: int
    path: str
    frame: int | None
    offset: float | None
    time: float | None
    camera: str
    file_state: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class Match:
    """A person found in the gallery.

    Attributes:
        rank: Rank from 1 (best).
        path: Absolute path of the image or video.
        box: XYXY pixels.
        score: Detection score in [0, 1].
        sim: Cosine similarity to the query in [-1, 1].
        image: Key of the image or frame in the gallery.
        frame: Index of the frame; None for an image.
        offset: Seconds of the frame from the start of the video; None for an image.
        time: Seconds since 1970; None if unknown.
        camera: Camera name; "" if unknown.
        frames: Number of frames of a tracklet, whose best crop the other fields describe; None
            for a match in a single image or frame.
        first: Seconds of the first frame of the tracklet from the start of the video.
        last: Seconds of its last frame.
        name: Path of the file within the indexed folder.
    """

    rank: int
    path: str
    box: tuple[float, float, float, float]
    score: float
    sim: float
    image: ImageKey = ImageKey("0")
    frame: int | None = None
    offset: float | None = None
    time: float | None = None
    camera: str = ""
    frames: int | None = None
    first: float | None = None
    last: float | None = None
    name: str = ""

    @classmethod
    def of(
        cls,
        image: GalleryImage,
        path: str,
        box: tuple[float, float, float, float],
        score: float,
        sim: float,
        **tracklet: Any,
    ) -> "Match":
        """Describes a person of an image; the rank is 0."""
        return cls(
            0,
            path,
            box,
            score,
            sim,
            image.key,
            image.frame,
            image.offset,
            image.time,
            image.camera,
            name=image.path,
            **tracklet,
        )

    def to_json(self) -> dict:
        """Returns plain types, boxes rounded to a tenth of a pixel; unknown fields are omitted."""
        known: dict[str, object] = {
            "frame": self.frame,
            "offset": None if self.offset is None else round(self.offset, 3),
            "time": None if self.time is None else format_time(self.time),
            "camera": self.camera or None,
            "tracklet": None,
        }
        if self.first is not None and self.last is not None:
            tracklet = {"first": round(self.first, 3), "last": round(self.last, 3)}
            known["tracklet"] = {**tracklet, "frames": self.frames}
        return {
            "rank": self.rank,
            "image": self.path,
            "box": [round(v, 1) for v in self.box],
            "score": round(self.score, 4),
            "similarity": round(self.sim, 4),
            **{key: value for key, value in known.items() if value is not None},
        }

    def describe_span(self) -> str:
        """Returns, for example, "0:12.0 to 0:18.0, 7 frames"; "" without several frames."""
        if self.first is None or self.last is None or self.frames == 1:
            return ""
        span = f"{format_offset(self.first)} to {format_offset(self.last)}"
        return f"{span}, {self.frames} frames"


def count(number: int, noun: str, nouns: str = "") -> str:
    """Returns a number with its noun, for example "1 image" and "2 images"."""
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


def format_offset(seconds: float) -> str:
    """Returns a time in a video as minutes and seconds, for example "1:05.0"."""
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes)}:{rest:04.1f}"


def format_time(seconds: float) -> str:
    """Returns ISO 8601 without a time zone: times are those of the camera clocks."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat(" ", "seconds")


class ImageTable:
    """Images and frames of a gallery by columns, which need a fraction of the memory of P objects.

    Args:
        entries: Entries of the images and frames.

    Attributes:
        paths: Paths within the indexed folders.
        roots: Numbers of the indexed folders (P,).
        frames: Frame indices (P,); -1 for an image.
        offsets: Seconds from the start of the video (P,); NaN for an image.
        times: Seconds since 1970 (P,); NaN if unknown.
        cameras: Indices into ``camera_names`` (P,).
        camera_names: Sorted names; "" if unknown.
        file_states: File sizes in bytes and modification times in ns (P, 2).
        sizes: Heights and widths in pixels (P, 2).
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        self.camera_names = sorted({entry.camera for entry in entries})
        code = {name: number for number, name in enumerate(self.camera_names)}
        shared: dict[str, str] = {}  # the frames of a video share the text of its path

        def column(values: Iterable, kind: type, missing: float = 0) -> np.ndarray:
            return np.array([missing if value is None else value for value in values], kind)

        self.paths = [shared.setdefault(entry.path, entry.path) for entry in entries]
        self.roots = column((e.root for e in entries), np.int32)
        self.frames = column((e.frame for e in entries), np.int64, -1)
        self.offsets = column((e.offset for e in entries), np.float64, np.nan)
        self.times = column((e.time for e in entries), np.float64, np.nan)
        self.cameras = column((code[e.camera] for e in entries), np.int32)
        self.file_states = column(((e.size, e.mtime_ns) for e in entries), np.int64).reshape(-1, 2)
        self.sizes = column(((e.height, e.width) for e in entries), np.int32).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> GalleryImage:
        frame = int(self.frames[number])
        offset, time = float(self.offsets[number]), float(self.times[number])
        size, mtime_ns = self.file_states[number].tolist()
        height, width = self.sizes[number].tolist()
        return GalleryImage(
            ImageKey(number),
            int(self.roots[number]),
            self.paths[number],
            frame if frame >= 0 else None,
            None if np.isnan(offset) else offset,
            None if np.isnan(time) else time,
            self.camera_names[self.cameras[number]],
            (size, mtime_ns),
            (height, width),
        )

    def allowed(self, wanted: SearchFilter) -> np.ndarray:
        """Returns the mask (P,) bool of the images that pass the filters of time and camera."""
        mask = np.ones(len(self), bool)
        if wanted.cameras:
            codes = [i for i, name in enumerate(self.camera_names) if name in wanted.cameras]
            mask &= np.isin(self.cameras, codes)
        if wanted.since is not None:
            mask &= self.times >= wanted.since  # False for NaN
        if wanted.until is not None:
            mask &= self.times <= wanted.until
        return mask
