# SPDX-License-Identifier: Apache-2.0
"""A gallery on disk: a manifest, the segments that it names, and the lock of its writer.

    gallery.json        manifest: version, model, D, folders of the images, segments, last run
    gallery.lock        held by the run that is writing
    segments/<name>/    see segment.py; one per writing process
    index-*             approximate index, if any; see approximate.py

The manifest is replaced atomically (write, sync, rename), by the holder of the lock only.
docs/search.md explains the layout.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from person_search.search.approximate import DESCRIPTION, build_index, read_description
from person_search.search.entries import Entry
from person_search.search.errors import GalleryDamagedError, GalleryError
from person_search.search.file_lock import FileLock
from person_search.search.identity import ModelIdentity
from person_search.search.names import to_stored
from person_search.search.remote import Place, RemotePath
from person_search.search.segment import (
    LOG,
    SegmentContents,
    SegmentWriter,
    map_rows,
    read_segment,
)
from person_search.search.store import CompactReport, GalleryStore, Keep, Manifest
from person_search.utils.files import write_atomically

if TYPE_CHECKING:
    from person_search.search.folder_gallery import FolderGallery

logger = logging.getLogger(__name__)

MANIFEST, LOCK, SEGMENTS = "gallery.json", "gallery.lock", "segments"
ATTEMPTS = 5
"""Attempts to read a gallery that is being compacted or extended at the same time."""
APPROXIMATE_FROM = 200_000
"""Number of persons from which the approximate index is built, and "auto" uses it."""
REBUILD_SHARE = 0.2
"""The approximate index is rebuilt if it lacks more than this share of the rows."""


class FolderStore(GalleryStore):
    """The files of a gallery.

    Args:
        folder: Folder with ``gallery.json``.

    Raises:
        GalleryError: If the folder is not a gallery, has another version or is damaged.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = self.location = Path(folder)
        self.manifest = self._read_manifest()
        self._root_paths: dict[str, Path] = {}

    @classmethod
    def create(cls, folder: str | os.PathLike, dim: int, model: ModelIdentity) -> "FolderStore":
        """Creates an empty gallery in an empty or missing folder.

        Raises:
            GalleryError: If the folder contains other files.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise GalleryError(f"'{folder}' is a file; a gallery is a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, f"the gallery '{folder}'"):
            # a run that was killed while creating the gallery may have left its temporary file
            ours = (LOCK, f".{MANIFEST}.")
            others = [p.name for p in folder.iterdir() if not p.name.startswith(ours)]
            if others:
                raise GalleryError(
                    f"'{folder}' is not a gallery and not empty (it contains "
                    f"'{sorted(others)[0]}'); choose a new folder for the gallery, beside that of "
                    "the images."
                )
            write_atomically(folder / MANIFEST, Manifest(dim, model).to_bytes(), durable=True)
        return cls(folder)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether there is a gallery."""
        return (folder / MANIFEST).exists()

    @contextmanager
    def writing(self) -> Iterator[int]:
        """Holds the lock of the gallery and starts a run; yields its number.

        Raises:
            GalleryLockedError: If another process is writing.
        """
        with FileLock(self.folder / LOCK, f"the gallery '{self.folder}'"):
            self.manifest = self._read_manifest()
            self.replace_manifest(run=self.manifest.run + 1)
            yield self.manifest.run

    def replace_manifest(self, **changes: object) -> None:
        """Writes the manifest with changed fields; requires the lock."""
        self.manifest = replace(self.manifest, **changes)  # type: ignore[arg-type]
        write_atomically(self.folder / MANIFEST, self.manifest.to_bytes(), durable=True)

    def add_root(self, root: Place) -> int:
        """Returns the index of a folder of images, adding it if it is new; requires the lock."""
        root, folder = root.resolve(), self.folder.resolve()
        # what lies beside the gallery may be moved together with it
        beside = root.is_relative_to(folder.parent)
        name = to_stored(os.path.relpath(root, folder) if beside else root)
        if name not in self.manifest.roots:
            self.replace_manifest(roots=(*self.manifest.roots, name))
        return self.manifest.roots.index(name)

    @property
    def roots(self) -> Mapping[int, str]:
        """See :class:`GalleryStore`."""
        return dict(enumerate(self.manifest.roots))

    def root_path(self, root: int) -> Place:
        """See :class:`GalleryStore`; a relative folder starts at the gallery."""
        path = super().root_path(root)
        if isinstance(path, RemotePath):
            return path
        name = self.manifest.roots[root]
        if name not in self._root_paths:
            self._root_paths[name] = Path(os.path.normpath(self.folder.resolve() / path))
        return self._root_paths[name]

    def segment_folder(self, name: str) -> Path:
        """Returns the folder of a segment."""
        return self.folder / SEGMENTS / name

    def ensure_writers(self, count: int) -> list[str]:
        """Returns the names of ``count`` segments, adding new ones; requires the lock."""
        names = list(self.manifest.segments)
        number = max((int(name) for name in names), default=0)
        while len(names) < count:
            number += 1
            names.append(f"{number:04d}")
            # left over from an interrupted compaction
            shutil.rmtree(self.segment_folder(names[-1]), ignore_errors=True)
        if len(names) > len(self.manifest.segments):
            self.replace_manifest(segments=tuple(names))
        return names[:count]

    def writer(self, name: str, durable: bool = True, together: int = 1) -> SegmentWriter:
        """Opens a segment for appending."""
        return SegmentWriter(self.segment_folder(name), self.manifest.dim, durable, together)

    def read_segments(self) -> list[SegmentContents]:
        """Reads all segments, in the order of the manifest."""
        for _ in range(3):  # a compaction may have replaced them since the manifest was read
            if all(self.segment_folder(name).is_dir() for name in self.manifest.segments):
                break
            fresh = self._read_manifest()
            if fresh.segments == self.manifest.segments:
                break  # announced by a run that has not created them yet
            self.manifest = fresh
        return [read_segment(self.segment_folder(name)) for name in self.manifest.segments]

    def refresh_manifest(self) -> bool:
        """Rereads the manifest; returns whether its segments or folders have changed."""
        before, self.manifest = self.manifest, self._read_manifest()
        return (before.segments, before.roots) != (self.manifest.segments, self.manifest.roots)

    def _read_manifest(self) -> Manifest:
        path = self.folder / MANIFEST
        if not path.is_file():
            raise GalleryError(
                f"'{self.folder}' is not a gallery: it contains no {MANIFEST}. Create one from a "
                "folder of images or a video with 'person-search index'."
            )
        return Manifest.from_bytes(path.read_bytes(), self.folder, path)

    # ---- the whole gallery -----------------------------------------------------------------------

    def gallery(self) -> "FolderGallery":
        """See :class:`GalleryStore`."""
        from person_search.search.folder_gallery import FolderGallery

        return FolderGallery(self)

    def revision(self) -> tuple:
        """See :class:`GalleryStore`."""
        found = []
        for place, _, names in os.walk(self.folder):
            for name in names:
                if name in (MANIFEST, DESCRIPTION, LOG):
                    with suppress(FileNotFoundError):  # just removed by a compaction
                        status = os.stat(os.path.join(place, name))
                        found.append((place, name, status.st_size, status.st_mtime_ns))
        return tuple(sorted(found))

    def entries(self) -> Iterator[Entry]:
        """See :class:`GalleryStore`."""
        for entries in live_entries(self.read_segments()):
            yield from entries

    def persons(self) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
        """See :class:`GalleryStore`."""
        segments, mapped = self.map_segments()
        for (vectors, boxes), entries in zip(mapped, live_entries(segments), strict=True):
            for entry in entries:
                rows = slice(entry.first, entry.first + entry.rows)
                yield entry, boxes[rows], vectors[rows]

    def scan(self, problems: list[str]) -> Iterator[Entry]:
        """See :class:`GalleryStore`."""
        from person_search.search.folder_maintenance import sound_contents

        segments = []
        for name in self.manifest.segments:
            contents, damage = sound_contents(self.segment_folder(name), self.manifest.dim)
            problems += damage
            segments.append(contents)
        for entries in live_entries(segments):
            yield from entries

    def refresh(self, approximate: bool) -> None:
        """See :class:`GalleryStore`."""
        gallery = self.gallery()
        gallery.save_tracklets()
        if not approximate:
            return
        description = read_description(self.folder)
        rows = len(gallery.image_of_row)
        held = sum(description.rows.values()) if description else 0
        outdated = description is None or rows - held > REBUILD_SHARE * rows
        if len(gallery) < APPROXIMATE_FROM or not outdated:
            return
        try:
            build_index(self.folder, self.manifest.segments, gallery.vectors)
        except GalleryError as e:  # exact search works without the index
            logger.warning("%s", e)

    def build_index(self) -> str:
        """See :class:`GalleryStore`."""
        gallery = self.gallery()
        if not len(gallery):
            raise GalleryError("the gallery is empty; there is nothing to index.")
        with self.writing():
            made = build_index(self.folder, self.manifest.segments, gallery.vectors)
        return made.describe()

    def rewrite(self, keep: Keep, check: Callable[[], None] = lambda: None) -> CompactReport:
        """See :class:`GalleryStore`. All segments become one.

        The manifest changes last: after an interruption the gallery is unchanged. An approximate
        index is deleted, because its row numbers no longer apply.

        Raises:
            GalleryLockedError: If another process is writing.
        """
        from person_search.search.folder_maintenance import replace_segments

        return replace_segments(self, keep, check)

    def map_segments(self) -> tuple[list[SegmentContents], list[tuple[np.ndarray, np.ndarray]]]:
        """Reads all segments of one manifest and maps their rows: vectors and boxes.

        A compaction deletes the old segments after replacing the manifest: the result is consistent
        if the manifest is still the same afterwards.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                segments = self.read_segments()
                mapped = [
                    map_rows(self.segment_folder(name), segment.rows, self.manifest.dim)
                    for name, segment in zip(self.manifest.segments, segments, strict=True)
                ]
            except (GalleryDamagedError, FileNotFoundError):
                if not self.refresh_manifest() or attempt == ATTEMPTS:
                    raise
            else:
                if not self.refresh_manifest():
                    return segments, mapped
        raise GalleryError(f"the gallery '{self.folder}' keeps changing; try again later.")


def live_entries(segments: Sequence[SegmentContents]) -> list[list[Entry]]:
    """Returns the entries that count, per segment in their order.

    Of several entries of an image or frame the last one counts; a removal ends all before it.
    """
    order = sorted(
        (entry.run, number, line)
        for number, segment in enumerate(segments)
        for line, entry in enumerate(segment.entries)
    )
    alive: dict[tuple[int, str], dict[int | None, tuple[int, int]]] = {}
    for _, number, line in order:
        entry = segments[number].entries[line]
        frames = alive.setdefault((entry.root, entry.path), {})
        if entry.removed:
            frames.clear()
        else:
            frames[entry.frame] = (number, line)
    kept: list[list[int]] = [[] for _ in segments]
    for frames in alive.values():
        for number, line in frames.values():
            kept[number].append(line)
    return [
        [segment.entries[line] for line in sorted(lines)]
        for segment, lines in zip(segments, kept, strict=True)
    ]
