# SPDX-License-Identifier: Apache-2.0
"""A gallery opened for searching: memory-mapped embeddings and a table of the images.

Shape shorthand: N rows (persons) of all segments, P images and frames, D embedding dimension.
Boxes are XYXY pixels of the upright image (EXIF orientation applied).
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from person_search.search.approximate import ApproximateIndex
from person_search.search.errors import (
    GalleryDamagedError,
    GalleryError,
    ImageChangedError,
    UnsafePathError,
)
from person_search.search.exact import best_rows, similarities
from person_search.search.identity import ModelIdentity
from person_search.search.images import read_image
from person_search.search.names import to_stored
from person_search.search.segment import SegmentContents, check_rows, map_rows
from person_search.search.store import GalleryStore, live_entries
from person_search.search.table import ImageTable, Match, SearchFilter
from person_search.search.tracklets import (
    NUMBERS_FILE,
    Tracklets,
    load_numbers,
    number_rows,
    save_numbers,
    take_rows,
)
from person_search.search.videos import read_frame

METHODS = ("auto", "exact", "approximate")
ATTEMPTS = 5
"""Attempts to read a gallery that is being compacted or extended at the same time."""
APPROXIMATE_FROM = 200_000
"""Number of persons from which "auto" uses the approximate index, if there is one."""
SELECTIVE = 0.2
"""Below this share of persons that pass a filter, search is exact: too few of them would lie in the
cells that an approximate search visits."""
CHANGED = "changed since it was indexed"
"""Said of an image whose file has another size or modification time."""


class Gallery:
    """A snapshot of a gallery on disk, taken when it is opened.

    Args:
        store: Files of the gallery.

    Attributes:
        images: Table of the P images and frames.
        failed: Entries of unreadable files.
        vectors: Embeddings of each segment (n_i, D).
        boxes: Boxes and scores of each segment (n_i, 5): x1 y1 x2 y2 score.
        image_of_row: Number of the image of each row (N,); -1 for replaced and removed images.
        num_persons: Number of persons that can be found.
        rows: Number of rows by the name of the segment.
        index: The approximate index; None without one.

    Raises:
        GalleryDamagedError: See segment.py.
    """

    def __init__(self, store: GalleryStore) -> None:
        self.store = store
        segments, mapped = _read(store)
        live = live_entries(segments)
        self.failed = [entry for entries in live for entry in entries if entry.error]
        shown = [[e for e in entries if not e.error and (e.frame or 0) >= 0] for entries in live]
        self.images = ImageTable(entry for entries in shown for entry in entries)
        self._starts = np.cumsum([0, *(segment.rows for segment in segments)])
        self.image_of_row = np.full(self._starts[-1], -1, np.int32)
        number = 0
        for start, entries in zip(self._starts[:-1], shown, strict=True):
            for entry in entries:
                first = start + entry.first
                self.image_of_row[first : first + entry.rows] = number
                number += 1
        names = store.manifest.segments
        self.vectors = [vectors for vectors, _ in mapped]
        self.boxes = [boxes for _, boxes in mapped]
        live_rows = self.image_of_row >= 0
        self.num_persons = int(np.count_nonzero(live_rows))
        self._live = None if live_rows.all() else live_rows  # None: all rows
        self.rows = {name: segment.rows for name, segment in zip(names, segments, strict=True)}
        self.index = ApproximateIndex.open(store.folder, self.rows) if self.num_persons else None
        self._row_of_index, self._later_rows = self._rows_of_index()

    @classmethod
    def open(cls, folder: str | os.PathLike, identity: ModelIdentity | None = None) -> "Gallery":
        """Opens a gallery.

        Args:
            folder: Folder of the gallery.
            identity: Identity of the model that embeds the queries; None to skip the check.

        Raises:
            GalleryError: If the folder is not a gallery.
            OtherModelError: If the gallery belongs to another model.
        """
        store = GalleryStore(folder)
        if identity is not None:
            store.manifest.model.require(identity, folder)
        return cls(store)

    def check(self) -> None:
        """Checks the files of a gallery that stays open for long.

        Raises:
            GalleryDamagedError: If they have been truncated since they were opened.
        """
        names = self.store.manifest.segments
        for name, vectors, boxes in zip(names, self.vectors, self.boxes, strict=True):
            check_rows(self.store.segment_folder(name), vectors, boxes)

    def __len__(self) -> int:
        return self.num_persons

    @cached_property
    def tracklets(self) -> Tracklets:
        """The tracklets of the videos, computed at the first use unless they are saved."""
        known = load_numbers(self.store.folder, self.rows)
        numbers = number_rows(self.image_of_row, self.images, self.boxes, self.vectors, known)
        return Tracklets(numbers, self.boxes, self.vectors)

    @property
    def has_videos(self) -> bool:
        """Whether any image is a frame of a video."""
        return bool((self.images.frames >= 0).any())

    def save_tracklets(self) -> None:
        """Saves the tracklets of the videos; the caller holds the lock of the gallery."""
        if self.has_videos:
            save_numbers(self.store.folder, self.rows, self.tracklets.numbers)
        else:  # the videos have been deleted
            (self.store.folder / NUMBERS_FILE).unlink(missing_ok=True)

    def search(
        self,
        query_feat: np.ndarray,
        top: int | None = 10,
        *,
        wanted: SearchFilter | None = None,
        skip: Collection[str | os.PathLike | int] = (),
        per_image: bool = True,
        every_frame: bool = False,
        method: str = "auto",
    ) -> list[Match]:
        """Finds the most similar persons.

        A person in neighboring frames of a video is returned once, as a tracklet, with the
        similarity of its embedding and with its best crop among the frames that may be found.

        Args:
            query_feat: Query embedding (D,) of unit length.
            top: Maximum number of matches; None for all.
            wanted: Filter of the persons that may be found; None for all.
            skip: Files (including whole videos) or numbers of images and frames to exclude, for
                example the image of the query.
            per_image: Return each image once, with its most similar person. With ``every_frame``,
                this applies to frames, too.
            every_frame: Treat frames as images instead of grouping them into tracklets.
            method: "exact", "approximate", or "auto": approximate in a large gallery with an
                index, unless few persons pass the filter.

        Returns:
            Matches, best first and ties in the order of the gallery.

        Raises:
            GalleryError: If the method is "approximate" and there is no index.
            ValueError: If the method is unknown or the query has another shape.
        """
        if method not in METHODS:
            raise ValueError(f"method is '{method}'; allowed: {', '.join(METHODS)}.")
        query_feat = np.asarray(query_feat, np.float32)
        if query_feat.shape != (self.store.manifest.dim,):
            raise ValueError(
                f"the query has shape {query_feat.shape}; the gallery contains embeddings of "
                f"dimension {self.store.manifest.dim}."
            )
        if method == "approximate" and self.index is None:
            raise GalleryError(
                f"the gallery '{self.store.folder}' has no approximate index; build one with "
                "'person-search compact --index', or search with the method 'exact'."
            )
        if not len(self):
            return []
        wanted = wanted or SearchFilter()
        allowed = self._allowed_rows(wanted, skip)
        grouped = not every_frame and self.has_videos
        single = allowed
        if grouped:
            single = (self.tracklets.numbers < 0) & (self.image_of_row >= 0)
            if allowed is not None:
                single &= allowed
        count = self.num_persons if single is None else int(np.count_nonzero(single))
        most = count if top is None else min(top, count)
        sims, rows = np.zeros(0, np.float32), np.zeros(0, np.int64)
        if self._choose(method, count):
            sims, rows = self._approximate_rows(query_feat, most, single, per_image)
        if len(rows) < most:  # exact search, or the visited cells contain too few persons
            sims, rows = self._exact_rows(query_feat, most, single, per_image)
        if grouped:
            sims, rows = self._with_tracklets(query_feat, top, allowed, sims, rows)
        if wanted.min_similarity is not None:
            rows = rows[: np.count_nonzero(sims >= wanted.min_similarity)]  # sims decrease
        return [
            self._match(i + 1, int(rows[i]), float(sims[i]), allowed, grouped)
            for i in range(len(rows))
        ]

    def image_path(self, image: int) -> Path:
        """Returns the path of an image by its number; see :meth:`GalleryStore.image_path`."""
        return self.store.image_path(int(self.images.roots[image]), self.images.paths[image])

    def is_changed(self, image: int) -> bool:
        """Whether the file of an image has changed since it was indexed; False if it is missing."""
        try:
            status = self.image_path(image).stat()
        except (OSError, UnsafePathError):
            return False
        return [status.st_size, status.st_mtime_ns] != self.images.file_states[image].tolist()

    def read_image(self, image: int) -> np.ndarray:
        """Reads an image or frame by its number.

        Returns:
            Array (H, W, 3) uint8 RGB.

        Raises:
            FileNotFoundError: If the file does not exist.
            BadImageError: If the file is unreadable.
            ImageChangedError: If the image has another size in pixels than when it was indexed.
            UnsafePathError: If the file lies outside the indexed folder.
        """
        path, frame = self.image_path(image), int(self.images.frames[image])
        pixels = read_image(path) if frame < 0 else read_frame(path, frame)
        indexed = self.images.sizes[image].tolist()
        if 0 not in indexed and list(pixels.shape[:2]) != indexed:
            raise ImageChangedError(
                f"the image '{path}' has {CHANGED}: it had {indexed[1]} x {indexed[0]} pixels and "
                f"has {pixels.shape[1]} x {pixels.shape[0]} now. Index it again."
            )
        return pixels

    def persons_in(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the persons detected in an image or frame.

        Returns:
            Boxes (n, 5) float32, x1 y1 x2 y2 score, and embeddings (n, D) float32 of unit length.
        """
        rows = np.flatnonzero(self.image_of_row == image)
        if not len(rows):
            return np.zeros((0, 5), np.float32), np.zeros((0, self.store.manifest.dim), np.float32)
        segment = int(np.searchsorted(self._starts, rows[0], side="right")) - 1
        rows -= self._starts[segment]  # an image belongs to one segment
        return np.array(self.boxes[segment][rows]), np.array(self.vectors[segment][rows])

    def persons_of(self, matches: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Replaces matches of tracklets by one for each frame.

        Args:
            matches: Matches as in ``results.jsonl``. Those that the gallery lacks stay as they are.
        """
        found: list[Mapping[str, Any]] = []
        for match in matches:
            rows = self._rows_at(match) if "tracklet" in match else np.zeros(0, np.int64)
            numbers = self.tracklets.numbers[rows[:1]]
            if not len(numbers):
                found.append(match)
            for number in numbers:
                for row in self.tracklets.rows_of(number):
                    found.append(self._match(1, int(row), 1.0, None, False).to_json())
        return found

    def _rows_at(self, match: Mapping[str, Any]) -> np.ndarray:
        """Returns the rows of the person of a match in ``results.jsonl``."""
        for image in np.flatnonzero(self.images.frames == match["frame"]):
            root, path = int(self.images.roots[image]), self.images.paths[image]
            if str(self.store.named_path(root, path)) == match["image"]:
                rows = np.flatnonzero(self.image_of_row == image)
                return rows[same_boxes(take_rows(self.boxes, rows), match["box"])]
        return np.zeros(0, np.int64)

    def _rows_of_index(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows of the gallery in index order, and those added after it was built."""
        if self.index is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        start_of = dict(zip(self.store.manifest.segments, self._starts, strict=False))
        rows = self.index.description.rows
        held = [np.arange(start_of[name], start_of[name] + count) for name, count in rows.items()]
        row_of_index = np.concatenate(held)
        later = np.ones(len(self.image_of_row), bool)
        later[row_of_index] = False
        return row_of_index, np.flatnonzero(later)

    def _allowed_rows(
        self, wanted: SearchFilter, skip: Collection[str | os.PathLike | int]
    ) -> np.ndarray | None:
        """Returns the mask (N,) bool of the rows that may be found, or None for all rows."""
        skipped = [one for one in skip if isinstance(one, int)]
        skipped += self._numbers_of([one for one in skip if not isinstance(one, int)])
        if replace(wanted, min_similarity=None) == SearchFilter() and not skipped:
            return self._live
        mask = self.images.allowed(wanted)
        mask[skipped] = False
        # rows without an image (-1) select the appended False
        allowed = np.append(mask, False)[self.image_of_row]
        if wanted.min_score > 0:
            allowed &= np.concatenate([boxes[:, 4] for boxes in self.boxes]) >= wanted.min_score
        return allowed

    def _numbers_of(self, files: Collection[str | os.PathLike]) -> list[int]:
        """Returns the numbers of all images and frames of files."""
        names = {Path(file).resolve() for file in files}
        found: list[int] = []
        for root in range(len(self.store.manifest.roots)) if names else ():
            folder = self.store.root_path(root).resolve()
            inside = [name for name in names if name.is_relative_to(folder)]
            relative = {to_stored(name.relative_to(folder).as_posix()) for name in inside}
            if relative:
                found += [
                    i
                    for i, path in enumerate(self.images.paths)
                    if path in relative and self.images.roots[i] == root
                ]
        return found

    def _choose(self, method: str, count: int) -> bool:
        """Decides whether to search approximately."""
        if method != "auto":
            return method == "approximate"
        large = self.num_persons >= APPROXIMATE_FROM and count >= SELECTIVE * self.num_persons
        return large and self.index is not None

    def _exact_rows(
        self, query_feat: np.ndarray, top: int, allowed: np.ndarray | None, per_image: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        sims = similarities(self.vectors, query_feat)
        if allowed is not None:
            sims[~allowed] = -np.inf
        return self._widen(lambda k: (sims[(rows := best_rows(sims, k))], rows), top, per_image)

    def _approximate_rows(
        self, query_feat: np.ndarray, top: int, allowed: np.ndarray | None, per_image: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Searches the indexed rows approximately and all later rows exactly."""
        index, row_of, later = self.index, self._row_of_index, self._later_rows
        assert index is not None
        held = index.description.rows
        parts = [
            part[held.get(name, 0) :]
            for name, part in zip(self.store.manifest.segments, self.vectors, strict=True)
        ]
        rest, mask = similarities(parts, query_feat), None
        if allowed is not None:
            rest[~allowed[later]] = -np.inf
            mask = allowed[row_of]

        def find(k: int) -> tuple[np.ndarray, np.ndarray]:
            sims, found = index.search(query_feat, k, mask)
            own = best_rows(rest, k)
            sims = np.concatenate([sims, rest[own]])
            rows = np.concatenate([row_of[found], later[own]])
            order = np.lexsort((rows, -sims))[:k]
            return sims[order], rows[order]

        return self._widen(find, top, per_image)

    def _with_tracklets(
        self,
        query_feat: np.ndarray,
        top: int | None,
        allowed: np.ndarray | None,
        sims: np.ndarray,
        rows: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Merges matches in images with the tracklets, each of which is named by its first row.

        There are few tracklets per row, so they are always searched exactly.
        """
        tracklets = self.tracklets
        own = similarities([tracklets.reid_feats], query_feat)
        if allowed is not None:
            own[~tracklets.any_of(allowed)] = -np.inf
        best = best_rows(own, len(own) if top is None else top)
        sims = np.concatenate([sims, own[best]])
        rows = np.concatenate([rows, tracklets.rows[tracklets.starts[best]]])
        order = np.lexsort((rows, -sims))[:top]
        return sims[order], rows[order]

    def _widen(self, find, top: int, per_image: bool) -> tuple[np.ndarray, np.ndarray]:
        """Requests more rows until they belong to enough images."""
        wanted = 2 * top if per_image else top
        while True:
            sims, rows = find(wanted)
            keep = np.arange(len(rows))
            if per_image:
                keep = np.sort(np.unique(self.image_of_row[rows], return_index=True)[1])
            if len(keep) >= top or len(rows) < wanted:
                return sims[keep[:top]], rows[keep[:top]]
            wanted *= 4

    def _match(
        self, rank: int, row: int, sim: float, allowed: np.ndarray | None, grouped: bool
    ) -> Match:
        """Describes a match; that of a tracklet by its best crop."""
        frames, first, last = None, None, None
        if grouped and (number := self.tracklets.numbers[row]) >= 0:
            rows = self.tracklets.rows_of(number, allowed)
            offsets = self.images.offsets[self.image_of_row[rows]]
            row, frames = int(rows[0]), len(rows)
            first, last = float(offsets.min()), float(offsets.max())
        segment = int(np.searchsorted(self._starts, row, side="right")) - 1
        x1, y1, x2, y2, score = map(float, self.boxes[segment][row - self._starts[segment]])
        image = int(self.image_of_row[row])
        table, frame = self.images, int(self.images.frames[image])
        offset, time = float(table.offsets[image]), float(table.times[image])
        return Match(
            rank=rank,
            path=str(self.store.named_path(int(table.roots[image]), table.paths[image])),
            box=(x1, y1, x2, y2),
            score=score,
            sim=sim,
            image=image,
            frame=frame if frame >= 0 else None,
            offset=None if np.isnan(offset) else offset,
            time=None if np.isnan(time) else time,
            camera=table.camera_names[table.cameras[image]],
            frames=frames,
            first=first,
            last=last,
        )


def same_boxes(boxes: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Returns which boxes (n, 5) are that of a match in ``results.jsonl``, which is rounded."""
    return (np.abs(boxes[:, :4] - np.asarray(box, np.float32)) < 0.06).all(axis=1)


def _read(
    store: GalleryStore,
) -> tuple[list[SegmentContents], list[tuple[np.ndarray, np.ndarray]]]:
    """Reads all segments of one manifest and maps their rows: vectors and boxes.

    A compaction deletes the old segments after replacing the manifest: the result is consistent if
    the manifest is still the same afterwards.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            segments = store.read_segments()
            mapped = [
                map_rows(store.segment_folder(name), segment.rows, store.manifest.dim)
                for name, segment in zip(store.manifest.segments, segments, strict=True)
            ]
        except (GalleryDamagedError, FileNotFoundError):
            if not store.refresh() or attempt == ATTEMPTS:
                raise
        else:
            if not store.refresh():
                return segments, mapped
    raise GalleryError(f"the gallery '{store.folder}' keeps changing; try again later.")
