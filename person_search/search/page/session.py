# SPDX-License-Identifier: Apache-2.0
"""The page without HTTP: a gallery, its model and the user's uploads.

The id of an image is ``g-<edition>-<number>`` for an image or frame of the gallery, where a new
edition starts whenever the gallery on disk has changed, and ``u-<token>`` for an upload. Nothing
that a browser sends is used as a path.

Shape shorthand: n persons of one image, D embedding dimension.
Boxes are XYXY pixels of the upright image (EXIF orientation applied).
"""

import logging
import os
import re
import secrets
import threading
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np

from person_search.data import BadImageError
from person_search.search.embedder import PersonEmbedder
from person_search.search.errors import (
    GalleryError,
    ImageChangedError,
    RemoteError,
    UnsafePathError,
)
from person_search.search.fit import describe_misfit
from person_search.search.gallery import Gallery
from person_search.search.images import clip_box, read_image
from person_search.search.locations import MilvusAddress, parse_location
from person_search.search.names import printable
from person_search.search.page.rendering import Decoded
from person_search.search.page.uploads import (
    UnknownImageError,
    Upload,
    UploadLimits,
    Uploads,
)
from person_search.search.query import QueryPerson, fuse
from person_search.search.results import SearchResult, place_of
from person_search.search.sources import parse_time
from person_search.search.store import GalleryStore
from person_search.search.table import GalleryImage, ImageKey, SearchFilter, format_time
from person_search.utils.model_card import NO_CARD

logger = logging.getLogger(__name__)
MAX_LISTED, MAX_PERSONS, MAX_TOP = 200, 10, 200
OUTDATED = "the gallery has changed in the meantime; reload the page."


@dataclass(frozen=True)
class Choice:
    """A person chosen by the user.

    Attributes:
        image: Id of the image.
        person: Number of a detected person in it; None for a drawn box.
        box: Drawn box; None for a detected person.
    """

    image: str
    person: int | None = None
    box: tuple[float, float, float, float] | None = None

    __pydantic_config__ = {"extra": "forbid"}  # app.py reads requests into these classes


@dataclass(frozen=True)
class SearchRequest:
    """A search.

    Attributes:
        persons: Images of the same person.
        top: Maximum number of matches.
        min_score: See :class:`SearchFilter`.
        cameras: Names of the cameras; empty for all.
        since: ISO 8601 time; "" for no bound.
        until: ISO 8601 time, a date including that day; "" for no bound.
        min_similarity: See :class:`SearchFilter`.
        every_person: Return all persons of an image instead of the most similar one.
        include_own: Also search the images of the query.
        every_frame: Return every frame of a video instead of tracklets.
    """

    persons: list[Choice]
    top: int = 24
    min_score: float = 0.0
    cameras: list[str] = field(default_factory=list)
    since: str = ""
    until: str = ""
    min_similarity: float | None = None
    every_person: bool = False
    include_own: bool = False
    every_frame: bool = False

    __pydantic_config__ = {"extra": "forbid"}

    def filter(self) -> SearchFilter:
        """Returns the filter of the search.

        Raises:
            ValueError: If a value is invalid.
        """
        return SearchFilter(
            self.min_score,
            frozenset(self.cameras),
            parse_time(self.since) if self.since else None,
            parse_time(self.until, end=True) if self.until else None,
            self.min_similarity,
        )


@dataclass(frozen=True)
class _Edition:
    """A snapshot of the gallery. Each request uses one edition throughout.

    Attributes:
        name: Part of the ids of its images.
        gallery: The opened gallery.
        seen: Its revision.
    """

    name: str
    gallery: Gallery
    seen: Hashable


@dataclass(frozen=True)
class _Image:
    """An image resolved from its id.

    Attributes:
        id: The id.
        path: Image or video file.
        name: Displayed name.
        gallery: Its gallery; None for an upload.
        number: Its key in the gallery; None for an upload.
        frame: Index of the frame of a video.
        upload: The upload; None for an image of the gallery.
    """

    id: str
    path: str
    name: str
    gallery: Gallery | None = None
    number: ImageKey | None = None
    frame: int | None = None
    upload: Upload | None = None


@dataclass(frozen=True)
class _Persons:
    """Detected persons: boxes (n, 4), scores (n,) in descending order, embeddings (n, D)."""

    boxes: np.ndarray
    scores: np.ndarray
    feats: np.ndarray


class PageSession:
    """A gallery with its model; safe for several threads.

    The model serves one thread at a time; requests that need no model do not wait for it.

    Args:
        folder: Gallery, a folder or a URL of Milvus.
        embedder: Embedder with the model of the gallery.
        limits: Limits of the uploads.

    Raises:
        GalleryError: If there is no such gallery.
        OtherModelError: If it belongs to another model.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        embedder: PersonEmbedder,
        limits: UploadLimits | None = None,
    ) -> None:
        self.folder = folder
        self.embedder = embedder
        self.decoded = Decoded()
        self._opening = threading.Lock()
        self._lock = threading.Lock()  # the model
        # of the uploads, discarded with them
        self._detected: WeakKeyDictionary[Upload, _Persons] = WeakKeyDictionary()
        with ExitStack() as stack:
            self.uploads = Uploads(limits)
            stack.callback(self.uploads.close)
            self._edition = self._open()
            stack.pop_all()

    def close(self) -> None:
        """Deletes the uploads."""
        self.uploads.close()

    def _open(self) -> _Edition:
        store = GalleryStore.open(self.folder)
        store.manifest.model.require(self.embedder.identity, store.location)
        seen = store.revision()  # before reading: later changes make the next edition
        return _Edition(secrets.token_hex(4), store.gallery(), seen)

    # ---- contents --------------------------------------------------------------------------------

    def describe(self) -> dict:
        """Returns facts about the gallery, reopened if it has changed on disk.

        Raises:
            GalleryError: If it has been damaged, or replaced by that of another model.
        """
        with self._opening, self._gallery_in_errors():
            if self._edition.gallery.store.revision() != self._edition.seen:
                self._edition = self._open()
            edition = self._edition
            edition.gallery.check()
        gallery = edition.gallery
        since, until = gallery.times or (None, None)
        return {
            "name": printable(self._name()),
            "edition": edition.name,
            "images": gallery.num_images,
            "persons": len(gallery),
            "cameras": [name for name in gallery.camera_names if name],
            "since": None if since is None else format_time(since),
            "until": None if until is None else format_time(until),
            "upload_bytes": self.uploads.limits.image_bytes,
            "model": card.describe() if (card := self.embedder.card) else NO_CARD,
            "warning": describe_misfit(card, gallery.store.manifest.color_details),
            "max_persons": MAX_PERSONS,
            "max_top": MAX_TOP,
        }

    def list_images(self, offset: int, limit: int, camera: str = "") -> dict:
        """Lists images and frames of the gallery in its order.

        Args:
            offset: Number of images to skip.
            limit: Maximum number of images.
            camera: Camera of the images; "" for all.
        """
        edition = self._edition
        limit = min(max(limit, 1), MAX_LISTED)
        total, images = edition.gallery.list_images(max(offset, 0), limit, camera)
        return {"total": total, "images": [_facts(edition, image) for image in images]}

    def describe_image(self, key: str) -> dict:
        """Returns name and size of an image, and its detected persons by descending score."""
        image = self._resolve(key)
        height, width = self._pixels(image).shape[:2]
        persons = self._persons(image)
        number = image.number
        return {
            "id": key,
            "name": image.name,
            "width": width,
            "height": height,
            "changed": number is not None and self._edition.gallery.is_changed(number),
            "persons": [
                {"person": i, "box": [round(float(v), 1) for v in box], "score": round(score, 4)}
                for i, (box, score) in enumerate(
                    zip(persons.boxes, persons.scores.tolist(), strict=True)
                )
            ],
        }

    def read(self, key: str) -> np.ndarray:
        """Returns the pixels of an image (H, W, 3) uint8 RGB, read-only by convention.

        Raises:
            UnknownImageError: If no image has this id.
            FileNotFoundError: If its file is missing.
            BadImageError: If its file is unreadable.
            ImageChangedError: If it has another size than when it was indexed.
            UnsafePathError: If the gallery names a file outside its folder.
        """
        return self._pixels(self._resolve(key))

    # ---- actions ---------------------------------------------------------------------------------

    def upload(self, content: bytes, name: str) -> dict:
        """Stores an image and detects its persons; returns :meth:`describe_image`.

        Raises:
            UploadTooLargeError: See :meth:`Uploads.add`.
            UploadTypeError: See :meth:`Uploads.add`.
            UploadStorageError: See :meth:`Uploads.add`.
            BadImageError: If the image is damaged.
        """
        token = self.uploads.add(content, name)
        try:
            return self.describe_image(f"u-{token}")
        except Exception:
            self.uploads.remove(token)
            raise

    def search(self, request: SearchRequest) -> SearchResult:
        """Ranks the gallery.

        Raises:
            ValueError: If the request is invalid, for example names an unknown camera.
            UnknownImageError: If an image no longer exists.
            GalleryDamagedError: If the gallery has been truncated.
        """
        if not 1 <= len(request.persons) <= MAX_PERSONS:
            raise ValueError(
                f"{len(request.persons)} persons are chosen; choose 1 to {MAX_PERSONS} images of "
                "the same person."
            )
        if not 1 <= request.top <= MAX_TOP:
            raise ValueError(f"{request.top} matches are requested; the range is 1 to {MAX_TOP}.")
        wanted, edition = request.filter(), self._edition
        gallery = edition.gallery
        unknown = wanted.cameras - set(gallery.camera_names)
        if unknown:
            raise ValueError(f"the gallery has no camera '{sorted(unknown)[0]}'.")
        images = [self._resolve(choice.image, edition) for choice in request.persons]
        queries = [
            self._query(choice, image)
            for choice, image in zip(request.persons, images, strict=True)
        ]
        own = [image.number for image in images if image.number is not None]
        with self._gallery_in_errors():
            gallery.check()
            matches = gallery.search(
                fuse([query.reid_feat for query in queries]),
                request.top,
                wanted=wanted,
                skip=() if request.include_own else own,
                per_image=not request.every_person,
                every_frame=request.every_frame,
            )
        settings = {
            "method": "auto",
            "top": request.top,
            "every_frame": request.every_frame,
            **wanted.to_json(),
        }
        return SearchResult(queries, gallery, matches, settings, wanted)

    def match_facts(self, result: SearchResult) -> list[dict]:
        """Returns matches for the browser: as in ``results.jsonl``, with ids in place of paths.

        Raises:
            UnknownImageError: If the searched gallery has been replaced.
        """
        edition = self._edition
        if result.gallery is not edition.gallery:
            raise UnknownImageError(OUTDATED)
        return [
            {
                **match.to_json(),
                "image": _key(edition, match.image),
                "name": place_of(match),
                "seen": match.describe_span(),
                "changed": result.gallery.is_changed(match.image),
            }
            for match in result.matches
        ]

    def _name(self) -> str:
        location = parse_location(self.folder)
        return location.name if isinstance(location, MilvusAddress) else location.absolute().name

    # ---- internals -------------------------------------------------------------------------------

    def _resolve(self, key: str, edition: _Edition | None = None) -> _Image:
        """Finds an image by its id.

        Args:
            key: The id.
            edition: Edition to search. Default: the latest.

        Raises:
            UnknownImageError: If there is no such image.
            UnsafePathError: If the gallery names a file outside its folder.
        """
        if key.startswith("u-"):
            upload = self.uploads.get(key[2:])
            return _Image(key, str(upload.path), upload.name, upload=upload)
        found = re.fullmatch(r"g-([0-9a-f]{8})-([0-9A-Za-z_-]{1,40})", key)
        if found is None:
            raise UnknownImageError(f"'{key[:60]}' is not an id of an image.")
        edition = edition or self._edition
        gallery = edition.gallery
        if found[1] != edition.name:
            raise UnknownImageError(OUTDATED)
        try:
            image = gallery.image(found[2])
        except LookupError as e:
            raise UnknownImageError(str(e)) from e
        name = _facts(edition, image)["name"]
        try:
            path = str(gallery.image_path(image.key))
        except UnsafePathError as e:
            raise UnsafePathError(
                f"the image '{name}' leaves the indexed folder. It is not opened."
            ) from e
        return _Image(key, path, name, gallery, image.key, image.frame)

    def _pixels(self, image: _Image) -> np.ndarray:
        """See :meth:`read`."""
        gallery, number = image.gallery, image.number
        with _names_in_errors(image):
            if gallery is None or number is None:
                return self.decoded.get(image.id, lambda: read_image(image.path))
            return self.decoded.get(image.id, lambda: gallery.read_image(number))

    def _persons(self, image: _Image) -> _Persons:
        """Returns the persons of an image: as indexed, or of an upload, detected at first use."""
        if image.gallery is not None and image.number is not None:
            with self._gallery_in_errors():
                image.gallery.check()
                rows, feats = image.gallery.persons_in(image.number)
            return _sorted(rows[:, :4], rows[:, 4], feats)
        assert image.upload is not None
        with self._lock:
            if image.upload not in self._detected:
                found = self.embedder.detect(self._for_model(image))
                boxes, scores = found.pred_boxes.tensor.numpy(), found.scores.numpy()
                feats = found.reid_feats.numpy()
                self._detected[image.upload] = _sorted(boxes, scores, feats)
            return self._detected[image.upload]

    def _for_model(self, image: _Image) -> np.ndarray:
        """Returns the pixels in the channel order of the model."""
        pixels = self._pixels(image)
        bgr = self.embedder.image_format == "BGR"
        return np.ascontiguousarray(pixels[:, :, ::-1]) if bgr else pixels

    def _query(self, choice: Choice, image: _Image) -> QueryPerson:
        if choice.box is not None:
            with self._lock:
                pixels = self._for_model(image)
                box = clip_box(choice.box, pixels.shape[1], pixels.shape[0])
                feat, score = self.embedder.embed_in(pixels, [box])[0], None
        else:
            persons, person = self._persons(image), choice.person
            if person is None or not 0 <= person < len(persons.scores):
                raise ValueError(
                    f"person {person} is chosen in '{image.name}', where {len(persons.scores)} "
                    "were detected (numbered from 0)."
                )
            box, feat = persons.boxes[person], persons.feats[person]
            score = float(persons.scores[person])
        x1, y1, x2, y2 = map(float, box)
        return QueryPerson(image.path, (x1, y1, x2, y2), feat, score, image.frame, image.name)

    @contextmanager
    def _gallery_in_errors(self) -> Iterator[None]:
        """Like :func:`_names_in_errors` for the gallery; the full path is logged."""
        try:
            yield
        except UnsafePathError:
            raise
        except GalleryError as e:
            logger.error("The gallery cannot be used: %s", e)
            folder, name = str(parse_location(self.folder)), self._name()
            raise type(e)(str(e).replace(f"'{folder}", f"'{name}")) from e


def _key(edition: _Edition, key: ImageKey) -> str:
    return f"g-{edition.name}-{key}"


def _facts(edition: _Edition, image: GalleryImage) -> dict:
    name = printable(os.path.basename(image.path))
    return {
        "id": _key(edition, image.key),
        "name": name if image.offset is None else f"{name} at {image.offset:.1f} s",
        "camera": image.camera,
        "time": None if image.time is None else format_time(image.time),
    }


@contextmanager
def _names_in_errors(image: _Image) -> Iterator[None]:
    """Replaces the path of an image in error messages by its name; paths are private."""
    try:
        yield
    except (BadImageError, FileNotFoundError, ImageChangedError, RemoteError) as e:
        raise type(e)(str(e).replace(image.path, image.name)) from e


def _sorted(boxes: np.ndarray, scores: np.ndarray, feats: np.ndarray) -> _Persons:
    order = np.argsort(-scores, kind="stable")
    return _Persons(boxes[order], scores[order], feats[order])
