# SPDX-License-Identifier: Apache-2.0
"""A gallery on disk: one manifest, the segments that it names, and who may write them.

    gallery.json        manifest: version, model, D, folders of the images, segments, last run
    gallery.lock        held by the run that is writing
    segments/<name>/    see segment.py; one per writing process
    index-*             approximate index, if any; see approximate.py

The manifest is replaced as a whole (write, force to disk, rename) and only by the holder of the
lock. The layout and its reasons are in docs/search.md.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NoReturn

from person_search.search.errors import GalleryError, UnsafePathError
from person_search.search.file_lock import FileLock
from person_search.search.identity import ModelIdentity
from person_search.search.segment import Entry, SegmentContents, SegmentWriter, read_segment
from person_search.utils.files import write_atomically

MANIFEST, LOCK, SEGMENTS = "gallery.json", "gallery.lock", "segments"
FORMAT, VERSION = "person-search gallery", 1


@dataclass(frozen=True)
class Manifest:
    """The content of ``gallery.json``.

    Args:
        dim: length of an embedding (D).
        model: which model the embeddings come from.
        roots: folders of the images; relative ones start at the gallery.
        segments: names of the segments, in order.
        run: number of the last run of ``index``.
    """

    dim: int
    model: ModelIdentity
    roots: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()
    run: int = 0

    def to_json(self) -> dict:
        """Plain types."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "dim": self.dim,
            "model": self.model.to_json(),
            "roots": list(self.roots),
            "segments": list(self.segments),
            "run": self.run,
        }


class GalleryStore:
    """The files of one gallery.

    Args:
        folder: holds ``gallery.json``.

    Raises:
        GalleryError: it does not, or the file is of another version or damaged.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.manifest = self._read_manifest()
        self._root_paths: dict[str, Path] = {}

    @classmethod
    def create(cls, folder: str | os.PathLike, dim: int, model: ModelIdentity) -> "GalleryStore":
        """Makes an empty gallery in a folder that is empty or absent.

        Raises:
            GalleryError: something lies there already.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise GalleryError(f"'{folder}' is a file; a gallery is a folder.")
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, f"the gallery '{folder}'"):
            # a run that was killed while it made the gallery may have left its temporary file
            ours = (LOCK, f".{MANIFEST}.")
            others = [p.name for p in folder.iterdir() if not p.name.startswith(ours)]
            if others:
                raise GalleryError(
                    f"'{folder}' is not empty (there is '{sorted(others)[0]}') and no gallery; "
                    "give a new folder for the gallery, beside that of the images."
                )
            write_atomically(folder / MANIFEST, _dump(Manifest(dim, model)), durable=True)
        return cls(folder)

    @classmethod
    def open_or_create(
        cls, folder: str | os.PathLike, dim: int, model: ModelIdentity
    ) -> "GalleryStore":
        """Opens a gallery for writing with this model; makes it if it is not there.

        Raises:
            OtherModelError: it is of another model, or of other detection settings.
        """
        if not (Path(folder) / MANIFEST).exists():
            return cls.create(folder, dim, model)
        store = cls(folder)
        store.manifest.model.require(model, folder, detection=True)
        return store

    @contextmanager
    def writing(self) -> Iterator[int]:
        """Holds the lock of the gallery and starts a run; yields its number.

        Raises:
            GalleryLockedError: somebody else is writing.
        """
        with FileLock(self.folder / LOCK, f"the gallery '{self.folder}'"):
            self.manifest = self._read_manifest()
            self.replace_manifest(run=self.manifest.run + 1)
            yield self.manifest.run

    def replace_manifest(self, **changes: object) -> None:
        """Writes the manifest with some fields changed; the caller holds the lock."""
        self.manifest = replace(self.manifest, **changes)  # type: ignore[arg-type]
        write_atomically(self.folder / MANIFEST, _dump(self.manifest), durable=True)

    def add_root(self, root: Path) -> int:
        """The index of a folder of images, which is added if it is new; needs the lock."""
        root = root.resolve()
        home = self.folder.resolve().parent
        # what lies beside the gallery may be moved together with it
        name = os.path.relpath(root, self.folder.resolve()) if _inside(root, home) else str(root)
        if name not in self.manifest.roots:
            self.replace_manifest(roots=(*self.manifest.roots, name))
        return self.manifest.roots.index(name)

    def root_path(self, root: int) -> Path:
        """A folder of images."""
        if not 0 <= root < len(self.manifest.roots):
            raise UnsafePathError(
                f"an entry of the gallery '{self.folder}' names folder {root}; the manifest knows "
                f"{len(self.manifest.roots)}."
            )
        name = self.manifest.roots[root]
        if name not in self._root_paths:
            self._root_paths[name] = Path(os.path.normpath(self.folder.resolve() / name))
        return self._root_paths[name]

    def named_path(self, root: int, path: str) -> Path:
        """The path of an image, to be shown; to be opened, see :meth:`image_path`.

        Raises:
            UnsafePathError: it leaves the folder that was indexed (``..``, an absolute path).
        """
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts:
            self._refuse(root, path)
        return self.root_path(root) / pure

    def image_path(self, root: int, path: str) -> Path:
        """Where an image of the gallery lies.

        Raises:
            UnsafePathError: outside the folder that was indexed, by ``..``, as an absolute path or
                through a link. A gallery from somebody else could name any file of this machine.
        """
        full = self.named_path(root, path)
        if not _inside(full.resolve(), self.root_path(root).resolve()):
            self._refuse(root, path)
        return full

    def _refuse(self, root: int, path: str) -> NoReturn:
        raise UnsafePathError(
            f"the gallery '{self.folder}' names the image '{path}', which leaves the folder "
            f"'{self.root_path(root)}' that was indexed. It is not opened."
        )

    def segment_folder(self, name: str) -> Path:
        """Where a segment lies."""
        return self.folder / SEGMENTS / name

    def ensure_segments(self, count: int) -> list[str]:
        """Names of ``count`` segments, new ones being added to the manifest; needs the lock."""
        names = list(self.manifest.segments)
        number = max((int(name) for name in names), default=0)
        while len(names) < count:
            number += 1
            names.append(f"{number:04d}")
            # left by a compaction that was interrupted
            shutil.rmtree(self.segment_folder(names[-1]), ignore_errors=True)
        if len(names) > len(self.manifest.segments):
            self.replace_manifest(segments=tuple(names))
        return names[:count]

    def segment_writer(self, name: str, durable: bool = True) -> SegmentWriter:
        """Opens a segment for appending."""
        return SegmentWriter(self.segment_folder(name), self.manifest.dim, durable)

    def read_segments(self) -> list[SegmentContents]:
        """The contents of all segments, in the order of the manifest."""
        for _ in range(3):  # a compaction may have replaced them since the manifest was read
            if all(self.segment_folder(name).is_dir() for name in self.manifest.segments):
                break
            fresh = self._read_manifest()
            if fresh.segments == self.manifest.segments:
                break  # announced by a run that has not opened them yet
            self.manifest = fresh
        return [read_segment(self.segment_folder(name)) for name in self.manifest.segments]

    def refresh(self) -> bool:
        """Reads the manifest again; whether it names other segments or folders than before."""
        before, self.manifest = self.manifest, self._read_manifest()
        return (before.segments, before.roots) != (self.manifest.segments, self.manifest.roots)

    def _read_manifest(self) -> Manifest:
        path = self.folder / MANIFEST
        if not path.is_file():
            raise GalleryError(
                f"'{self.folder}' is no gallery: there is no {MANIFEST} in it. Make one from a "
                "folder of images or a video with 'person-search index'."
            )
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            if content["version"] != VERSION:
                raise GalleryError(
                    f"the gallery '{self.folder}' has version {content['version']}; this program "
                    f"reads version {VERSION}."
                )
            segments = tuple(str(int(name)).zfill(4) for name in content["segments"])
            return Manifest(
                dim=int(content["dim"]),
                model=ModelIdentity.from_json(content["model"]),
                roots=tuple(map(str, content["roots"])),
                segments=segments,
                run=int(content["run"]),
            )
        except GalleryError:
            raise
        except (ValueError, KeyError, TypeError) as e:
            raise GalleryError(f"'{path}' is no manifest of a gallery: {e}") from e


def live_entries(segments: Sequence[SegmentContents]) -> list[list[Entry]]:
    """The entries that count, per segment in their order.

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


def _dump(manifest: Manifest) -> bytes:
    return (json.dumps(manifest.to_json(), indent=2) + "\n").encode()


def _inside(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents
