# SPDX-License-Identifier: Apache-2.0
"""Images uploaded to the page: validated, kept in a private folder, discarded soon.

Boxes are XYXY pixels of the upright image (EXIF orientation applied).
"""

import io
import os
import secrets
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from person_search.data.image_io import READ_ERRORS
from person_search.search.images import image_suffixes

FORMATS = {
    "JPEG": ".jpg",
    "MPO": ".jpg",  # written by some phones as .jpg
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "GIF": ".gif",
    "AVIF": ".avif",
    "HEIF": ".heic",
}
"""Accepted formats by content, whatever the name says."""
NAME_LENGTH = 100


class UploadTooLargeError(ValueError):
    """An upload has too many bytes."""


class UploadTypeError(ValueError):
    """An upload is not an image of an accepted format."""


class UploadStorageError(OSError):
    """An upload cannot be stored, for example because the disk is full."""


class UnknownImageError(LookupError):
    """An id was never issued, or its image has been discarded."""


@dataclass(frozen=True)
class UploadLimits:
    """Limits of the uploads.

    Attributes:
        image_bytes: Maximum size of an image in bytes.
        count: Maximum number of kept images; the least recently used ones are discarded.
        total_bytes: Maximum size of all kept images in bytes.
    """

    image_bytes: int = 20_000_000
    count: int = 50
    total_bytes: int = 200_000_000


@dataclass(frozen=True, eq=False)
class Upload:
    """An uploaded image. What is derived from it should be kept only as long as it lives.

    Attributes:
        path: Temporary file.
        name: Name given by the user.
        size: Size in bytes.
    """

    path: Path
    name: str
    size: int


class Uploads:
    """All uploaded images; safe for several threads.

    They lie in a folder that only this user can read, which is deleted by :meth:`close`.

    Args:
        limits: Limits of the uploads.
    """

    def __init__(self, limits: UploadLimits | None = None) -> None:
        self.limits = limits or UploadLimits()
        self._folder = tempfile.TemporaryDirectory(prefix="person-search-")
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def close(self) -> None:
        """Deletes all images."""
        with self._lock:
            self._kept.clear()
            self._folder.cleanup()

    def add(self, content: bytes, name: str) -> str:
        """Keeps an image of an accepted format and size; its pixels are not decoded yet.

        Args:
            content: Content of the file.
            name: Displayed name; it is never used as a path.

        Returns:
            A new id that cannot be guessed.

        Raises:
            UploadTooLargeError: If the image has too many bytes.
            UploadTypeError: If it is not an image of an accepted format.
            UploadStorageError: If it cannot be written.
        """
        self.check_size(len(content))
        suffix = FORMATS[_format_of(content)]
        token = secrets.token_urlsafe(12)
        path = Path(self._folder.name) / (token + suffix)
        try:
            path.write_bytes(content)
        except OSError as e:
            path.unlink(missing_ok=True)
            raise UploadStorageError(f"the image cannot be stored: {e.strerror}.") from e
        # the last part of the name, printable and short
        name = "".join(c for c in os.path.basename(name.replace("\\", "/")) if c.isprintable())
        name = name[-NAME_LENGTH:].strip() or "image"
        with self._lock:
            self._kept[token] = Upload(path, name, len(content))
            while len(self._kept) > 1 and (
                len(self._kept) > self.limits.count
                or sum(upload.size for upload in self._kept.values()) > self.limits.total_bytes
            ):
                _, oldest = self._kept.popitem(last=False)
                oldest.path.unlink(missing_ok=True)
        return token

    def check_size(self, size: int) -> None:
        """Validates the size of an image.

        Raises:
            UploadTooLargeError: If it has too many bytes.
        """
        if size > self.limits.image_bytes:
            raise UploadTooLargeError(
                f"the image is larger than {self.limits.image_bytes / 1e6:g} MB; reduce its size, "
                "or use 'person-search query', which reads it from disk."
            )

    def get(self, token: str) -> Upload:
        """Returns an image by its id.

        Raises:
            UnknownImageError: If there is no such image any more.
        """
        with self._lock:
            if token not in self._kept:
                raise UnknownImageError("this image is no longer kept; choose it again.")
            self._kept.move_to_end(token)
            return self._kept[token]

    def remove(self, token: str) -> None:
        """Discards an image."""
        with self._lock:
            upload = self._kept.pop(token, None)
        if upload is not None:
            upload.path.unlink(missing_ok=True)


def _format_of(content: bytes) -> str:
    known = ", ".join(sorted(s[1:] for s in {*FORMATS.values()} & {*image_suffixes()}))
    if not content:
        raise UploadTypeError("the file is empty (0 bytes).")
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind = image.format or "unknown"
    except READ_ERRORS as e:
        raise UploadTypeError(f"the file is not a readable image ({known}).") from e
    if kind not in FORMATS:
        raise UploadTypeError(f"the image has the format {kind}; accepted: {known}.")
    return kind
