# SPDX-License-Identifier: Apache-2.0
"""What the page can ask for, without HTTP: a gallery, its model, and the user's own images.

An image has an id: ``g-<edition>-<number>`` for an image or frame of the gallery, of which a new
edition begins whenever the gallery on disk has changed, and ``u-<token>`` for an upload. Nothing
that a browser sends is ever used as a path.

Shape shorthand in this file: n persons of one image, D length of an embedding.
Boxes are XYXY pixels of the image as people see it (EXIF orientation applied).
"""

import logging
import math
import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from person_search.data import BadImageError
from person_search.search.embedder import PersonEmbedder
from person_search.search.errors import GalleryError, UnsafePathError
from person_search.search.gallery import Gallery
from person_search.search.images import clip_box, read_image
from person_search.search.page.rendering import Decoded
from person_search.search.page.requests import MAX_PERSONS, MAX_TOP, Choice, Request
from person_search.search.page.uploads import (
    UnknownImageError,
    Upload,
    UploadLimits,
    Uploads,
)
from person_search.search.query import QueryPerson, fuse
from person_search.search.results import SearchResult, place_of
from person_search.search.table import SearchFilter, format_time

logger = logging.getLogger(__name__)
MAX_LISTED = 200
CHANGED = "the gallery has changed in the meantime; load the page again."


@dataclass(frozen=True)
class _Edition:
    """The gallery as it was at one time. Whoever answers a request keeps to one edition.

    Args:
        name: in the ids of its images. gallery: opened. seen: its :func:`signature`.
    """

    name: str
    gallery: Gallery
    seen: tuple


@dataclass(frozen=True)
class _Image:
    """An image by its id.

    Args:
        path: of the file. frame: of a video. name: shown to people.
        gallery: that it is of, number: in it; None for an upload. upload: None for the others.
    """

    id: str
    path: str
    name: str
    gallery: Gallery | None = None
    number: int | None = None
    frame: int | None = None
    upload: Upload | None = None


@dataclass(frozen=True)
class _Persons:
    """Persons who were detected: boxes (n, 4), scores (n,), embeddings (n, D)."""

    boxes: np.ndarray
    scores: np.ndarray
    feats: np.ndarray


class PageSession:
    """One gallery with its model; may be used by several threads. The model takes one at a time;
    what needs no model does not wait for it.

    Args:
        folder: of the gallery.
        embedder: the model of the gallery.
        limits: of uploads.

    Raises:
        GalleryError: there is no such gallery. OtherModelError: it is of another model.
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
        # of uploads; forgotten with them
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
        seen = signature(self.folder)  # before reading: what comes later makes the next edition
        gallery = Gallery.open(self.folder, self.embedder.identity)
        return _Edition(secrets.token_hex(4), gallery, seen)

    # ---- what there is ---------------------------------------------------------------------------

    def describe(self) -> dict:
        """The gallery in a few facts; takes in what was indexed in the meantime.

        Raises:
            GalleryError: it has been damaged, or replaced by that of another model.
        """
        with self._opening, self._gallery_in_errors():
            if signature(self.folder) != self._edition.seen:
                self._edition = self._open()
            edition = self._edition
            edition.gallery.check()
        table = edition.gallery.pictures
        times = table.times[~np.isnan(table.times)]
        return {
            "name": os.path.basename(os.path.abspath(self.folder)),
            "edition": edition.name,
            "pictures": len(table),
            "persons": len(edition.gallery),
            "cameras": [name for name in table.camera_names if name],
            "since": format_time(times.min()) if len(times) else None,
            "until": format_time(times.max()) if len(times) else None,
            "upload_bytes": self.uploads.limits.image_bytes,
            "max_persons": MAX_PERSONS,
            "max_top": MAX_TOP,
        }

    def list_images(self, offset: int, limit: int, camera: str = "") -> dict:
        """Images and frames of the gallery in its order.

        Args:
            offset, limit: which of them. camera: only of this one; "" for all.
        """
        edition = self._edition
        wanted = SearchFilter(cameras=frozenset([camera] if camera else []))
        numbers = np.flatnonzero(edition.gallery.pictures.allowed(wanted))
        shown = numbers[max(offset, 0) :][: min(max(limit, 1), MAX_LISTED)]
        return {
            "total": len(numbers),
            "pictures": [_facts(edition, int(number)) for number in shown],
        }

    def picture(self, key: str) -> dict:
        """One image: name, size, and the persons detected in it, the surest first."""
        picture = self._resolve(key)
        height, width = self._pixels(picture).shape[:2]
        persons = self._persons(picture)
        return {
            "id": key,
            "name": picture.name,
            "width": width,
            "height": height,
            "persons": [
                {"person": i, "box": _rounded(persons.boxes[i]), "score": round(float(score), 4)}
                for i, score in enumerate(persons.scores)
            ],
        }

    def read(self, key: str) -> np.ndarray:
        """The pixels of an image, (H, W, 3) uint8 RGB, not to be written to.

        Raises:
            UnknownImageError: there is none with this id.
            FileNotFoundError, BadImageError: its file is gone or unreadable.
            UnsafePathError: the gallery names a file outside its folder.
        """
        return self._pixels(self._resolve(key))

    # ---- what can be done ------------------------------------------------------------------------

    def upload(self, content: bytes, name: str) -> dict:
        """Takes in an image and detects the persons in it; what :meth:`image` returns.

        Raises:
            UploadTooLargeError, UploadTypeError, BadImageError.
        """
        token = self.uploads.add(content, name)
        try:
            return self.picture(f"u-{token}")
        except Exception:
            self.uploads.remove(token)
            raise

    def search(self, request: Request) -> SearchResult:
        """Ranks the gallery.

        Raises:
            ValueError: nobody, too many, a box beside the image, a camera that is not known.
            UnknownImageError: an image that is not there any more.
            GalleryDamagedError: the gallery has been cut off.
        """
        if not 1 <= len(request.persons) <= MAX_PERSONS:
            raise ValueError(
                f"{len(request.persons)} persons are chosen; choose 1 to {MAX_PERSONS} images of "
                "the same person."
            )
        if not 1 <= request.top <= MAX_TOP:
            raise ValueError(f"{request.top} matches are wanted; 1 to {MAX_TOP} can be listed.")
        edition = self._edition
        gallery = edition.gallery
        unknown = request.wanted.cameras - set(gallery.pictures.camera_names)
        if unknown:
            raise ValueError(f"the gallery knows no camera '{sorted(unknown)[0]}'.")
        pictures = [self._resolve(choice.picture, edition) for choice in request.persons]
        queries = [
            self._query(choice, picture)
            for choice, picture in zip(request.persons, pictures, strict=True)
        ]
        own = [picture.number for picture in pictures if picture.number is not None]
        with self._gallery_in_errors():
            gallery.check()
            matches = gallery.search(
                fuse([query.reid_feat for query in queries]),
                request.top,
                wanted=request.wanted,
                skip=() if request.include_own else own,
                per_image=not request.every_person,
            )
        settings = {"method": "auto", "top": request.top, **request.wanted.to_json()}
        return SearchResult(queries, gallery, matches, settings, request.wanted)

    def match_facts(self, result: SearchResult) -> list[dict]:
        """Matches for the browser: as in ``results.jsonl``, with an id in place of the path.

        Raises:
            UnknownImageError: the gallery that was searched has been replaced.
        """
        edition = self._edition
        if result.gallery is not edition.gallery:
            raise UnknownImageError(CHANGED)
        found = []
        for match in result.matches:
            facts = match.to_json()
            del facts["image"]
            found.append(
                {"picture": _key(edition, match.picture), "name": place_of(match), **facts}
            )
        return found

    # ---- within ----------------------------------------------------------------------------------

    def _resolve(self, key: str, edition: _Edition | None = None) -> _Image:
        """
        Args:
            edition: to look into; None for the newest.

        Raises:
            UnknownImageError, UnsafePathError.
        """
        if key.startswith("u-"):
            upload = self.uploads.get(key[2:])
            return _Image(key, str(upload.path), upload.name, upload=upload)
        found = re.fullmatch(r"g-([0-9a-f]{8})-([0-9]{1,12})", key)
        if found is None:
            raise UnknownImageError(f"'{key[:60]}' is no id of an image.")
        edition = edition or self._edition
        number, gallery = int(found[2]), edition.gallery
        if found[1] != edition.name:
            raise UnknownImageError(CHANGED)
        if number >= len(gallery.pictures):
            raise UnknownImageError(f"the gallery has no image {number}.")
        name, frame = _facts(edition, number)["name"], int(gallery.pictures.frames[number])
        try:
            path = str(gallery.image_path(number))
        except UnsafePathError as e:
            raise UnsafePathError(
                f"the image '{name}' leaves the folder that was indexed. It is not opened."
            ) from e
        return _Image(key, path, name, gallery, number, None if frame < 0 else frame)

    def _pixels(self, picture: _Image) -> np.ndarray:
        """See :meth:`read`."""
        gallery, number = picture.gallery, picture.number
        with _names_in_errors(picture):
            if gallery is None or number is None:
                return self.decoded.get(picture.id, lambda: read_image(picture.path))
            return self.decoded.get(picture.id, lambda: gallery.read_image(number))

    def _persons(self, picture: _Image) -> _Persons:
        """Who is in an image: of the gallery, as it was indexed; of an upload, detected now."""
        if picture.gallery is not None and picture.number is not None:
            with self._gallery_in_errors():
                picture.gallery.check()
                rows, feats = picture.gallery.persons_in(picture.number)
            return _sorted(rows[:, :4], rows[:, 4], feats)
        assert picture.upload is not None
        with self._lock:
            if picture.upload not in self._detected:
                found = self.embedder.detect(self._for_model(picture))
                boxes, scores = found.pred_boxes.tensor.numpy(), found.scores.numpy()
                feats = found.reid_feats.numpy()
                self._detected[picture.upload] = _sorted(boxes, scores, feats)
            return self._detected[picture.upload]

    def _for_model(self, picture: _Image) -> np.ndarray:
        """The pixels in the order of the channels that the model wants."""
        if picture.frame is None:
            with _names_in_errors(picture):
                return read_image(picture.path, self.embedder.image_format)
        frame = self._pixels(picture)
        bgr = self.embedder.image_format == "BGR"
        return np.ascontiguousarray(frame[:, :, ::-1]) if bgr else frame

    def _query(self, choice: Choice, picture: _Image) -> QueryPerson:
        if choice.box is not None:
            with self._lock:
                pixels = self._for_model(picture)
                box = clip_box(choice.box, pixels.shape[1], pixels.shape[0])
                feat, score = self.embedder.embed_in(pixels, [box])[0], None
        else:
            persons, person = self._persons(picture), choice.person
            if person is None or not 0 <= person < len(persons.scores):
                raise ValueError(
                    f"person {person} is chosen in '{picture.name}', where {len(persons.scores)} "
                    "were detected (counted from 0)."
                )
            box, feat = persons.boxes[person], persons.feats[person]
            score = float(persons.scores[person])
        x1, y1, x2, y2 = map(float, box)
        return QueryPerson(picture.path, (x1, y1, x2, y2), feat, score, picture.frame, picture.name)

    @contextmanager
    def _gallery_in_errors(self) -> Iterator[None]:
        """Like :func:`_names_in_errors` for the gallery; the terminal is told where it lies."""
        try:
            yield
        except UnsafePathError:
            raise
        except GalleryError as e:
            logger.error("The gallery cannot be used: %s", e)
            folder, name = str(Path(self.folder)), os.path.basename(os.path.abspath(self.folder))
            raise type(e)(str(e).replace(f"'{folder}", f"'{name}")) from e


def _key(edition: _Edition, number: int) -> str:
    return f"g-{edition.name}-{number}"


def _facts(edition: _Edition, number: int) -> dict:
    table = edition.gallery.pictures
    time, offset = float(table.times[number]), float(table.offsets[number])
    name = os.path.basename(table.paths[number])
    return {
        "id": _key(edition, number),
        "name": name if math.isnan(offset) else f"{name} at {offset:.1f} s",
        "camera": table.camera_names[table.cameras[number]],
        "time": None if math.isnan(time) else format_time(time),
    }


@contextmanager
def _names_in_errors(picture: _Image) -> Iterator[None]:
    """Puts the name of an image in the place of its path, which is nobody's business."""
    try:
        yield
    except (BadImageError, FileNotFoundError) as e:
        raise type(e)(str(e).replace(picture.path, picture.name)) from e


def signature(folder: str | os.PathLike) -> tuple:
    """Changes whenever something is added to a gallery or taken out."""
    found = []
    for place, _, names in os.walk(os.fspath(folder)):
        for name in names:
            if name in ("gallery.json", "index.json", "entries.log"):
                with suppress(FileNotFoundError):  # a compaction has just taken it away
                    status = os.stat(os.path.join(place, name))
                    found.append((place, name, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))


def _sorted(boxes: np.ndarray, scores: np.ndarray, feats: np.ndarray) -> _Persons:
    order = np.argsort(-scores, kind="stable")
    return _Persons(boxes[order], scores[order], feats[order])


def _rounded(box: np.ndarray) -> list[float]:
    return [round(float(v), 1) for v in box]
