# SPDX-License-Identifier: Apache-2.0
"""A gallery on disk, opened for searching: memory-mapped embeddings and a table of the images.

Shape shorthand: N rows (persons) of all segments, P images and frames, D embedding dimension.
Boxes are XYXY pixels of the upright image (EXIF orientation applied).
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from person_search.search.approximate import ApproximateIndex, read_description
from person_search.search.errors import GalleryError
from person_search.search.exact import best_rows, similarities
from person_search.search.folder_store import APPROXIMATE_FROM, FolderStore, live_entries
from person_search.search.gallery import Gallery, same_boxes
from person_search.search.segment import check_rows
from person_search.search.table import (
    GalleryImage,
    ImageKey,
    ImageTable,
    Match,
    SearchFilter,
    count,
)
from person_search.search.tracklets import (
    NUMBERS_FILE,
    Tracklets,
    load_numbers,
    number_rows,
    save_numbers,
    take_rows,
)

SELECTIVE = 0.2
"""Below this share of persons that pass a filter, search is exact: too few of them would lie in the
cells that an approximate search visits."""


class FolderGallery(Gallery):
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

    store: FolderStore

    def __init__(self, store: FolderStore) -> None:
        super().__init__(store)
        segments, mapped = store.map_segments()
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
        times = self.images.times[~np.isnan(self.images.times)]
        self.num_images, self.num_failed = len(self.images), len(self.failed)
        self.camera_names = self.images.camera_names
        self.times = (float(times.min()), float(times.max())) if len(times) else None

    def check(self) -> None:
        """See :class:`Gallery`."""
        names = self.store.manifest.segments
        for name, vectors, boxes in zip(names, self.vectors, self.boxes, strict=True):
            check_rows(self.store.segment_folder(name), vectors, boxes)

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

    def _find(
        self,
        query_feat: np.ndarray,
        top: int | None,
        wanted: SearchFilter,
        keys: Sequence[ImageKey],
        files: Sequence[str | os.PathLike],
        per_image: bool,
        every_frame: bool,
        method: str,
    ) -> list[Match]:
        if method == "approximate" and self.index is None:
            raise GalleryError(
                f"the gallery '{self.store.folder}' has no approximate index; build one with "
                "'person-search compact --index', or search with the method 'exact'."
            )
        if not len(self):
            return []
        skipped = [int(key) for key in keys] + self._numbers_of(files)
        allowed = self._allowed_rows(wanted, skipped)
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
            self._match(int(row), float(sim), allowed, grouped)
            for row, sim in zip(rows, sims, strict=False)
        ]

    def image(self, key: str) -> GalleryImage:
        """See :class:`Gallery`; the key is the number of the image."""
        if not (key.isdecimal() and int(key) < len(self.images)):
            raise LookupError(f"the gallery has no image {key}.")
        return self.images[int(key)]

    def list_images(
        self, offset: int, limit: int, camera: str = ""
    ) -> tuple[int, list[GalleryImage]]:
        """See :class:`Gallery`."""
        wanted = SearchFilter(cameras=frozenset([camera] if camera else []))
        numbers = np.flatnonzero(self.images.allowed(wanted))
        return len(numbers), [self.images[i] for i in numbers[offset : offset + limit].tolist()]

    def persons_in(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Gallery`."""
        rows = np.flatnonzero(self.image_of_row == int(key))
        if not len(rows):
            return np.zeros((0, 5), np.float32), np.zeros((0, self.store.manifest.dim), np.float32)
        segment = int(np.searchsorted(self._starts, rows[0], side="right")) - 1
        rows -= self._starts[segment]  # an image belongs to one segment
        return np.array(self.boxes[segment][rows]), np.array(self.vectors[segment][rows])

    def persons_of(self, matches: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """See :class:`Gallery`."""
        found: list[Mapping[str, Any]] = []
        for match in matches:
            rows = self._rows_at(match) if "tracklet" in match else np.zeros(0, np.int64)
            numbers = self.tracklets.numbers[rows[:1]]
            if not len(numbers):
                found.append(match)
            for number in numbers:
                for row in self.tracklets.rows_of(number):
                    found.append(self._match(int(row), 1.0, None, False).to_json())
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

    def _allowed_rows(self, wanted: SearchFilter, skipped: Sequence[int]) -> np.ndarray | None:
        """Returns the mask (N,) bool of the rows that may be found, or None for all rows."""
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
        places = set(self.store.places_of(files))
        named = enumerate(zip(self.images.roots, self.images.paths, strict=True))
        return [i for i, place in named if place in places] if places else []

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

    def _match(self, row: int, sim: float, allowed: np.ndarray | None, grouped: bool) -> Match:
        """Describes a match; that of a tracklet by its best crop."""
        frames, first, last = None, None, None
        if grouped and (number := self.tracklets.numbers[row]) >= 0:
            rows = self.tracklets.rows_of(number, allowed)
            offsets = self.images.offsets[self.image_of_row[rows]]
            row, frames = int(rows[0]), len(rows)
            first, last = float(offsets.min()), float(offsets.max())
        segment = int(np.searchsorted(self._starts, row, side="right")) - 1
        x1, y1, x2, y2, score = map(float, self.boxes[segment][row - self._starts[segment]])
        image = self.images[int(self.image_of_row[row])]
        return Match.of(
            image,
            str(self.store.named_path(image.root, image.path)),
            (x1, y1, x2, y2),
            score,
            sim,
            frames=frames,
            first=first,
            last=last,
        )

    # ---- facts -----------------------------------------------------------------------------------

    def _size_facts(self) -> list[tuple[str, str]]:
        store, rows = self.store, len(self.image_of_row)
        size = sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
        gone = f"{rows - len(self)} of replaced or removed images"
        megabytes = f"{4 * rows * store.manifest.dim / 1e6:.1f} MB"
        segments = count(len(store.manifest.segments), "segment")
        return [
            ("persons", f"{len(self)} ({gone})"),
            ("embeddings", f"dimension {store.manifest.dim}, {megabytes}"),
            ("on disk", f"{size / 1e6:.1f} MB in {segments}"),
        ]

    def _index_facts(self) -> list[tuple[str, str]]:
        made = read_description(self.store.folder)
        return [
            *([("tracklets", f"{len(self.tracklets)} in videos")] if self.has_videos else []),
            ("approximate index", made.describe() if made else "none"),
        ]

    def _num_untimed(self) -> int:
        return int(np.isnan(self.images.times).sum())
