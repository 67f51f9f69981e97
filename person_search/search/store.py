# SPDX-License-Identifier: Apache-2.0
"""What a gallery must offer, wherever it lies: a folder, or a collection of Milvus.

Commands, page and indexing use these classes only. ``GalleryStore`` writes and maintains a gallery,
``Gallery`` (gallery.py) searches it. An image is added, replaced or removed wholly or not at all.

Shape shorthand: n persons of one image, D embedding dimension.
Boxes are XYXY pixels of the upright image.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from urllib.parse import unquote

import numpy as np

from person_search.search.entries import Entry
from person_search.search.errors import GalleryError, UnsafePathError
from person_search.search.identity import ModelIdentity
from person_search.search.locations import MilvusAddress, parse_location
from person_search.search.names import from_stored, to_stored
from person_search.search.remote import Place, parse_place
from person_search.utils.model_card import ModelCard, ModelCardError

if TYPE_CHECKING:
    from person_search.search.gallery import Gallery

FORMAT, VERSION = "person-search gallery", 1

Keep = Callable[[Entry, np.ndarray], np.ndarray | None]
"""Gets an entry and its boxes (n, 5). Returns which of its persons stay, (n,) bool, or None to
delete the whole entry."""


@dataclass(frozen=True)
class Manifest:
    """What a gallery knows of itself, as JSON.

    Attributes:
        dim: Embedding dimension D.
        model: Identity of the model that computed the embeddings.
        roots: Folders of the images; relative ones start at the gallery. Folder galleries only.
        segments: Names of the segments, in order. Folder galleries only.
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
        """Returns the JSON text."""
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

    @classmethod
    def from_bytes(cls, text: bytes | str, gallery: object, place: object) -> "Manifest":
        """Inverse of :meth:`to_bytes`.

        Args:
            text: The JSON text.
            gallery: Name of the gallery, for messages.
            place: Where the text was read, for messages.

        Raises:
            GalleryError: If it is not a manifest, or of another version.
        """
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            if content["version"] != VERSION:
                raise GalleryError(
                    f"the gallery '{gallery}' has version {content['version']}; this program "
                    f"reads version {VERSION}."
                )
            return cls(
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
            raise GalleryError(f"'{place}' is not a manifest of a gallery: {e}") from e


def _card_of(content: Mapping[str, Any]) -> ModelCard | None:
    """Returns the card in a manifest; None if it has none, or one of a newer version."""
    try:
        return ModelCard.from_json(content["card"]) if content.get("card") else None
    except ModelCardError:  # informative only: the gallery works without it
        return None


@dataclass(frozen=True)
class CompactReport:
    """Result of :func:`person_search.search.compact`.

    Attributes:
        images: Number of images in the gallery now.
        persons: Number of persons in the gallery now.
        dropped_rows: Number of removed persons, those of replaced and removed images among them.
        damaged: Descriptions of the damage that was lost.
    """

    images: int
    persons: int
    dropped_rows: int
    damaged: list[str]


class ImageWriter(Protocol):
    """Writes images; of one process."""

    def append(
        self,
        entry: Entry,
        boxes: np.ndarray | None = None,
        scores: np.ndarray | None = None,
        reid_feats: np.ndarray | None = None,
    ) -> Entry:
        """Adds an image, replaces it, or removes the file of an entry that is ``removed``.

        Args:
            entry: Entry of the image; its rows and checksum are filled in.
            boxes: Boxes (n, 4); None for an entry without persons.
            scores: Detection scores (n,), with boxes.
            reid_feats: Embeddings (n, D) of unit length, with boxes.

        Returns:
            The entry as written.
        """
        ...


class GalleryStore(ABC):
    """A gallery opened for writing and maintenance.

    Attributes:
        location: Where it is; its text holds no credentials.
        manifest: What it knows of itself.
    """

    location: Path | MilvusAddress
    manifest: Manifest

    @staticmethod
    def open(location: str | os.PathLike | MilvusAddress) -> "GalleryStore":
        """Opens a gallery.

        Args:
            location: A folder, or a URL; see :func:`parse_location`.

        Raises:
            GalleryError: If there is no gallery, or one of another version, or if it is damaged.
        """
        location = parse_location(location)
        return _store_class(location)(location)

    @staticmethod
    def open_or_create(
        location: str | os.PathLike | MilvusAddress, dim: int, model: ModelIdentity
    ) -> "GalleryStore":
        """Opens a gallery for writing with this model, or creates it.

        Raises:
            OtherModelError: If it belongs to another model or other detection settings.
        """
        location = parse_location(location)
        kind = _store_class(location)
        if not kind.exists(location):
            return kind.create(location, dim, model)
        store = kind(location)
        try:
            store.manifest.model.require(model, location, detection=True)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:  # noqa: B027 (a folder has no connection)
        """Ends a connection."""

    # ---- reading ---------------------------------------------------------------------------------

    @abstractmethod
    def gallery(self) -> "Gallery":
        """Opens the gallery for searching."""

    @abstractmethod
    def revision(self) -> Hashable:
        """Returns a value that changes whenever images are added or removed."""

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Yields the entries of all images, frames and ends of videos, also of unreadable files."""

    @abstractmethod
    def persons(self) -> Iterator[tuple[Entry, np.ndarray, np.ndarray]]:
        """Yields all entries with boxes and scores (n, 5) and embeddings (n, D)."""

    @abstractmethod
    def scan(self, problems: list[str]) -> Iterator[Entry]:
        """Reads everything.

        Args:
            problems: Gets a sentence about each damage.

        Yields:
            The entries whose persons are intact.
        """

    # ---- writing ---------------------------------------------------------------------------------

    @abstractmethod
    def writing(self) -> AbstractContextManager[int]:
        """Starts a run; yields its number.

        Raises:
            GalleryLockedError: If the gallery has one writer at a time, and another is writing.
        """

    @abstractmethod
    def replace_manifest(self, **changes: object) -> None:
        """Changes fields of the manifest, within :meth:`writing`."""

    @abstractmethod
    def add_root(self, root: Place) -> int:
        """Returns the number of a folder of images, adding it if it is new."""

    @abstractmethod
    def ensure_writers(self, count: int) -> list[str]:
        """Returns the names of writers, one for each process of a run."""

    @abstractmethod
    def writer(
        self, name: str, durable: bool = True, together: int = 1
    ) -> AbstractContextManager[ImageWriter]:
        """Opens a writer. At its end, all images are in the gallery.

        Args:
            name: One of :meth:`ensure_writers`.
            durable: Images survive a power failure, too; see ``SegmentWriter``.
            together: Number of images that may wait for each other, see ``SegmentWriter``.
        """

    @abstractmethod
    def refresh(self, approximate: bool) -> None:
        """Prepares for searching what has been written, at the end of a run.

        Args:
            approximate: Build the approximate index if the gallery is large and the index missing
                or outdated.
        """

    @abstractmethod
    def build_index(self) -> str:
        """Builds the approximate index; returns its description.

        Raises:
            GalleryError: If the gallery is too small, or a package is missing.
        """

    @abstractmethod
    def rewrite(self, keep: Keep, check: Callable[[], None] = lambda: None) -> CompactReport:
        """Deletes replaced, removed and damaged images, and what ``keep`` refuses.

        Args:
            keep: Decides what stays.
            check: Called when all entries have been seen; an error leaves the gallery unchanged.
        """

    # ---- paths -----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def roots(self) -> Mapping[int, str]:
        """The folders of the images by number, as stored."""

    def root_path(self, root: int) -> Place:
        """Returns a folder of images.

        Raises:
            UnsafePathError: If the gallery has no such folder.
        """
        if root not in self.roots:
            raise UnsafePathError(
                f"an entry of the gallery '{self.location}' refers to folder {root}; the manifest "
                f"has {len(self.roots)}."
            )
        return parse_place(from_stored(self.roots[root]))

    def named_path(self, root: int, path: str) -> Place:
        """Returns the path of an image for display; to open it, use :meth:`image_path`.

        Raises:
            UnsafePathError: If it leaves the indexed folder (``..``, an absolute path).
        """
        pure = PurePosixPath(path)
        parts = {*pure.parts, *unquote(path).split("/")}  # a web server may decode it
        if pure.is_absolute() or ".." in parts or "\0" in path:
            self._refuse(root, path)
        try:
            return self.root_path(root) / from_stored(path)
        except UnicodeEncodeError:
            self._refuse(root, path)

    def image_path(self, root: int, path: str) -> Place:
        """Returns the path of an image.

        Raises:
            UnsafePathError: If it leaves the indexed folder by ``..``, as an absolute path or
                through a link. A gallery from another person could name any file of this machine.
        """
        full = self.named_path(root, path)
        if not full.resolve().is_relative_to(self.root_path(root).resolve()):
            self._refuse(root, path)
        return full

    def places_of(self, files: Iterable[str | os.PathLike]) -> Iterator[tuple[int, str]]:
        """Yields folder and stored path of files, as far as they are in folders of the gallery."""
        for name in {parse_place(file).resolve() for file in files}:
            for root in self.roots:
                folder = self.root_path(root).resolve()
                if name.is_relative_to(folder):
                    yield root, to_stored(name.relative_to(folder).as_posix())

    def _refuse(self, root: int, path: str) -> NoReturn:
        raise UnsafePathError(
            f"the gallery '{self.location}' names the image '{path}', which leaves the indexed "
            f"folder '{self.root_path(root)}'. It is not opened."
        )


def _store_class(location: Path | MilvusAddress) -> Any:
    if isinstance(location, MilvusAddress):
        from person_search.search.milvus_store import MilvusStore

        return MilvusStore
    from person_search.search.folder_store import FolderStore

    return FolderStore
