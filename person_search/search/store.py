# SPDX-License-Identifier: Apache-2.0
"""A gallery on disk: a manifest, the segments that it names, and the lock of its writer.

    gallery.json        manifest: version, model, D, folders of the images, segments, last run
    gallery.lock        held by the run that is writing
    segments/<name>/    see segment.py; one per writing process
    index-*             approximate index, if any; see approximate.py

The manifest is replaced atomically (write, sync, rename), by the holder of the lock only.
docs/search.md explains the layout.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from person_search.search.errors import GalleryError, UnsafePathError
from person_search.search.file_lock import FileLock
from person_search.search.identity import ModelIdentity
from person_search.search.names import from_stored, to_stored
from person_search.search.segment import Entry, SegmentContents, SegmentWriter, read_segment
from person_search.utils.files import write_atomically
from person_search.utils.model_card import ModelCard, ModelCardError

MANIFEST, LOCK, SEGMENTS = "gallery.json", "gallery.lock", "segments"
FORMAT, VERSION = "person-search gallery", 1


@dataclass(frozen=True)
class Manifest:
    """Content of ``gallery.json``.

    Attributes:
        dim: Embedding dimension D.
        model: Identity of the model that computed the embeddings.
        roots: Folders of the images; relative ones start at the gallery.
        segments: Names of the segments, in order.
        run: Number of the last run of ``index``.
        card: Model card of the model; None if it has none.
        color_details: ``color_detail`` of the last images that were measured.
    """

    dim: int
    model: ModelIdentity
    roots: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()
    run: int = 0
    card: ModelCard | None = None
    color_details: tuple[float, ...] = ()

    def to_bytes(self) -> bytes:
        """Returns the JSON text of the file."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "dim": self.dim,
            "model": self.model.to_json(),
            "roots": list(self.roots),
            "segments": list(self.segments),
            "run": self.run,
            "card": None if self.card is None else self.card.to_json(),
            "color_details": list(self.color_details),
        }
        return (json.dumps(content, indent=2) + "\n").encode()


class GalleryStore:
    """The files of a gallery.

    Args:
        folder: Folder with ``gallery.json``.

    Raises:
        GalleryError: If the folder is not a gallery, has another version or is damaged.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.manifest = self._read_manifest()
        self._root_paths: dict[str, Path] = {}

    @classmethod
    def create(cls, folder: str | os.PathLike, dim: int, model: ModelIdentity) -> "GalleryStore":
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

    @classmethod
    def open_or_create(
        cls, folder: str | os.PathLike, dim: int, model: ModelIdentity
    ) -> "GalleryStore":
        """Opens a gallery for writing with this model, or creates it.

        Raises:
            OtherModelError: If it belongs to another model or other detection settings.
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

    def add_root(self, root: Path) -> int:
        """Returns the index of a folder of images, adding it if it is new; requires the lock."""
        root, folder = root.resolve(), self.folder.resolve()
        # what lies beside the gallery may be moved together with it
        beside = root.is_relative_to(folder.parent)
        name = to_stored(os.path.relpath(root, folder) if beside else root)
        if name not in self.manifest.roots:
            self.replace_manifest(roots=(*self.manifest.roots, name))
        return self.manifest.roots.index(name)

    def root_path(self, root: int) -> Path:
        """Returns a folder of images.

        Raises:
            UnsafePathError: If the manifest has no such folder.
        """
        if not 0 <= root < len(self.manifest.roots):
            raise UnsafePathError(
                f"an entry of the gallery '{self.folder}' refers to folder {root}; the manifest "
                f"has {len(self.manifest.roots)}."
            )
        name = self.manifest.roots[root]
        if name not in self._root_paths:
            path = os.path.normpath(self.folder.resolve() / from_stored(name))
            self._root_paths[name] = Path(path)
        return self._root_paths[name]

    def named_path(self, root: int, path: str) -> Path:
        """Returns the path of an image for display; to open it, use :meth:`image_path`.

        Raises:
            UnsafePathError: If it leaves the indexed folder (``..``, an absolute path).
        """
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or "\0" in path:
            self._refuse(root, path)
        try:
            return self.root_path(root) / from_stored(path)
        except UnicodeEncodeError:
            self._refuse(root, path)

    def image_path(self, root: int, path: str) -> Path:
        """Returns the path of an image.

        Raises:
            UnsafePathError: If it leaves the indexed folder by ``..``, as an absolute path or
                through a link. A gallery from another person could name any file of this machine.
        """
        full = self.named_path(root, path)
        if not full.resolve().is_relative_to(self.root_path(root).resolve()):
            self._refuse(root, path)
        return full

    def _refuse(self, root: int, path: str) -> NoReturn:
        raise UnsafePathError(
            f"the gallery '{self.folder}' names the image '{path}', which leaves the indexed "
            f"folder '{self.root_path(root)}'. It is not opened."
        )

    def segment_folder(self, name: str) -> Path:
        """Returns the folder of a segment."""
        return self.folder / SEGMENTS / name

    def ensure_segments(self, count: int) -> list[str]:
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

    def segment_writer(self, name: str, durable: bool = True) -> SegmentWriter:
        """Opens a segment for appending."""
        return SegmentWriter(self.segment_folder(name), self.manifest.dim, durable)

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

    def refresh(self) -> bool:
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
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            if content["version"] != VERSION:
                raise GalleryError(
                    f"the gallery '{self.folder}' has version {content['version']}; this program "
                    f"reads version {VERSION}."
                )
            return Manifest(
                dim=int(content["dim"]),
                model=ModelIdentity.from_json(content["model"]),
                roots=tuple(map(str, content["roots"])),
                segments=tuple(str(int(name)).zfill(4) for name in content["segments"]),
                run=int(content["run"]),
                card=_card_of(content),
                color_details=tuple(map(float, content.get("color_details", ()))),
            )
        except GalleryError:
            raise
        except (ValueError, KeyError, TypeError) as e:
            raise GalleryError(f"'{path}' is not a manifest of a gallery: {e}") from e


def _card_of(content: Mapping[str, Any]) -> ModelCard | None:
    """Returns the card in a manifest; None if it has none, or one of a newer version."""
    try:
        return ModelCard.from_json(content["card"]) if content.get("card") else None
    except ModelCardError:  # informative only: the gallery works without it
        return None


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
