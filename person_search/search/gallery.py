# SPDX-License-Identifier: Apache-2.0
"""A gallery opened for searching, wherever it lies; see store.py.

Shape shorthand: n persons of one image, D embedding dimension.
Boxes are XYXY pixels of the upright image (EXIF orientation applied).
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from person_search.search.errors import ImageChangedError, RemoteError, UnsafePathError
from person_search.search.identity import ModelIdentity
from person_search.search.images import read_image
from person_search.search.names import printable
from person_search.search.remote import Place, local_copy
from person_search.search.store import GalleryStore
from person_search.search.table import (
    GalleryImage,
    ImageKey,
    Match,
    SearchFilter,
    count,
    format_time,
)
from person_search.search.videos import read_frame
from person_search.utils.model_card import NO_CARD

METHODS = ("auto", "exact", "approximate")
CHANGED = "changed since it was indexed"
"""Said of an image whose file has another size or modification time."""


class Gallery(ABC):
    """A snapshot of a gallery, taken when it is opened.

    Args:
        store: The gallery.

    Attributes:
        num_images: Number of images and frames.
        num_persons: Number of persons that can be found.
        num_failed: Number of unreadable files.
        camera_names: Sorted names; "" if unknown.
        times: First and last time in seconds since 1970; None if all are unknown.
    """

    num_images: int
    num_persons: int
    num_failed: int
    camera_names: list[str]
    times: tuple[float, float] | None

    def __init__(self, store: GalleryStore) -> None:
        self.store = store

    @classmethod
    def open(cls, location: str | os.PathLike, identity: ModelIdentity | None = None) -> "Gallery":
        """Opens a gallery.

        Args:
            location: A folder, or a URL of Milvus.
            identity: Identity of the model that embeds the queries; None to skip the check.

        Raises:
            GalleryError: If there is no gallery.
            OtherModelError: If the gallery belongs to another model.
        """
        store = GalleryStore.open(location)
        if identity is not None:
            store.manifest.model.require(identity, store.location)
        return store.gallery()

    def __len__(self) -> int:
        return self.num_persons

    def check(self) -> None:  # noqa: B027 (most galleries have nothing to check)
        """Checks a gallery that stays open for long.

        Raises:
            GalleryDamagedError: If its files have been truncated since they were opened.
        """

    # ---- images ----------------------------------------------------------------------------------

    @abstractmethod
    def image(self, key: str) -> GalleryImage:
        """Returns an image or frame.

        Raises:
            LookupError: If the gallery has no such image.
        """

    @abstractmethod
    def list_images(
        self, offset: int, limit: int, camera: str = ""
    ) -> tuple[int, list[GalleryImage]]:
        """Lists images and frames in the order of the gallery.

        Args:
            offset: Number of images to skip.
            limit: Maximum number of images.
            camera: Camera of the images; "" for all.

        Returns:
            Number of all images of the camera, and those asked for.
        """

    def all_images(self) -> Iterator[GalleryImage]:
        """Yields all images and frames, however many, in the order of the gallery."""
        yield from self.list_images(0, self.num_images)[1]

    @abstractmethod
    def persons_in(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the persons detected in an image or frame.

        Returns:
            Boxes (n, 5) float32, x1 y1 x2 y2 score, and embeddings (n, D) float32 of unit length.
        """

    @abstractmethod
    def persons_of(self, matches: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Replaces matches of tracklets by one for each frame.

        Args:
            matches: Matches as in ``results.jsonl``. Those that the gallery lacks stay as they are.
        """

    def image_path(self, key: str) -> Place:
        """Returns the path of an image; see :meth:`GalleryStore.image_path`."""
        image = self.image(key)
        return self.store.image_path(image.root, image.path)

    def is_changed(self, key: str) -> bool:
        """Whether the file of an image has changed since it was indexed; False if it is missing."""
        try:
            status = self.image_path(key).stat()
        except (OSError, UnsafePathError, RemoteError):
            return False
        return (status.st_size, status.st_mtime_ns) != self.image(key).file_state

    def read_image(self, key: str) -> np.ndarray:
        """Reads an image or frame.

        Returns:
            Array (H, W, 3) uint8 RGB.

        Raises:
            FileNotFoundError: If the file does not exist.
            RemoteError: If the server of the file is away or refuses.
            BadImageError: If the file is unreadable.
            ImageChangedError: If the image has another size in pixels than when it was indexed.
            UnsafePathError: If the file lies outside the indexed folder.
        """
        path, image = self.image_path(key), self.image(key)
        with local_copy(path) as local:
            pixels = read_image(local) if image.frame is None else read_frame(local, image.frame)
        if 0 not in image.size and pixels.shape[:2] != image.size:
            height, width = image.size
            raise ImageChangedError(
                f"the image '{path}' has {CHANGED}: it had {width} x {height} pixels and "
                f"has {pixels.shape[1]} x {pixels.shape[0]} now. Index it again."
            )
        return pixels

    # ---- search ----------------------------------------------------------------------------------

    def search(
        self,
        query_feat: np.ndarray,
        top: int | None = 10,
        *,
        wanted: SearchFilter | None = None,
        skip: Collection[str | os.PathLike] = (),
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
            skip: Files (including whole videos), or keys of images and frames (:class:`ImageKey`)
                to exclude, for example the image of the query.
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
        query_feat = np.ascontiguousarray(query_feat, np.float32)
        if query_feat.shape != (self.store.manifest.dim,):
            raise ValueError(
                f"the query has shape {query_feat.shape}; the gallery contains embeddings of "
                f"dimension {self.store.manifest.dim}."
            )
        wanted = wanted or SearchFilter()
        keys = [one for one in skip if isinstance(one, ImageKey)]
        files = [one for one in skip if not isinstance(one, ImageKey)]
        found = self._find(query_feat, top, wanted, keys, files, per_image, every_frame, method)
        return [replace(match, rank=rank) for rank, match in enumerate(found, 1)]

    @abstractmethod
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
        """See :meth:`search`, which checks the arguments and numbers the matches."""

    # ---- facts -----------------------------------------------------------------------------------

    def facts(self) -> list[tuple[str, str]]:
        """Returns names and values for ``person-search info``."""
        store, manifest = self.store, self.store.manifest
        span = " to ".join(map(format_time, self.times)) if self.times else ""
        failed = count(self.num_failed, "file")
        return [
            ("images and frames", f"{self.num_images} ({failed} unreadable)"),
            *self._size_facts(),
            ("model", f"{manifest.model.architecture}, weights {manifest.model.weights[:12]}"),
            ("model card", manifest.card.describe() if manifest.card else NO_CARD),
            *(("folder", printable(store.root_path(root))) for root in store.roots),
            ("cameras", ", ".join(name for name in self.camera_names if name) or "unknown"),
            ("times", f"{span}, {self._num_untimed()} unknown" if span else "unknown"),
            *self._index_facts(),
            ("runs", str(manifest.run)),
        ]

    @abstractmethod
    def _size_facts(self) -> list[tuple[str, str]]:
        """Returns the facts about persons and memory."""

    @abstractmethod
    def _index_facts(self) -> list[tuple[str, str]]:
        """Returns the facts about tracklets and index."""

    @abstractmethod
    def _num_untimed(self) -> int:
        """Returns the number of images of unknown time."""


def same_boxes(boxes: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Returns which boxes (n, 5) are that of a match in ``results.jsonl``, which is rounded."""
    return (np.abs(boxes[:, :4] - np.asarray(box, np.float32)) < 0.06).all(axis=1)
