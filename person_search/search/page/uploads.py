# SPDX-License-Identifier: Apache-2.0
"""Images that somebody has sent to the page: checked, kept in a private folder, soon forgotten.

Boxes are XYXY pixels of the image as people see it (EXIF orientation applied).
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

FORMATS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}
"""By content, whatever the name says. MPO is what some phones write as ``.jpg``."""
NAME_LENGTH = 100


class UploadTooLargeError(ValueError):
    """More bytes than are taken."""


class UploadTypeError(ValueError):
    """No image, or one of a kind that is not taken."""


class UnknownImageError(LookupError):
    """An id that was never given out, or whose image has been forgotten."""


@dataclass(frozen=True)
class UploadLimits:
    """How much is taken and kept.

    Args:
        image_bytes: of one image.
        count, total_bytes: of all that are kept; the ones not used for longest are forgotten.
    """

    image_bytes: int = 20_000_000
    count: int = 50
    total_bytes: int = 200_000_000


@dataclass(frozen=True, eq=False)
class Upload:
    """An image that was sent. What others know about it they should know only as long as it lives.

    Args:
        path: where it lies for now. name: what its owner calls it. size: bytes.
    """

    path: Path
    name: str
    size: int


class Uploads:
    """All images that were sent; may be used by several threads.

    They lie in a folder that only this user can read, and that ends with :meth:`close`.
    """

    def __init__(self, limits: UploadLimits | None = None) -> None:
        self.limits = limits or UploadLimits()
        self._folder = tempfile.TemporaryDirectory(prefix="person-search-")
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def close(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._kept.clear()
            self._folder.cleanup()

    def add(self, content: bytes, name: str) -> str:
        """Keeps an image whose kind and size are allowed; its pixels are not looked at yet.

        Args:
            content: of the file. name: what to call it; no path is ever made of it.

        Returns:
            a new id that nobody can guess.

        Raises:
            UploadTooLargeError, UploadTypeError.
        """
        self.check_size(len(content))
        suffix = FORMATS[_format_of(content)]
        token = secrets.token_urlsafe(12)
        path = Path(self._folder.name) / (token + suffix)
        path.write_bytes(content)
        with self._lock:
            self._kept[token] = Upload(path, _plain_name(name), len(content))
            self._forget_oldest()
        return token

    def check_size(self, size: int) -> None:
        """
        Raises:
            UploadTooLargeError: an image of so many bytes is not taken.
        """
        if size > self.limits.image_bytes:
            raise UploadTooLargeError(
                f"the image is larger than {self.limits.image_bytes / 1e6:g} MB; make it "
                "smaller, or let 'person-search query' read it from the disk."
            )

    def get(self, token: str) -> Upload:
        """
        Raises:
            UnknownImageError: there is none with this id any more.
        """
        with self._lock:
            if token not in self._kept:
                raise UnknownImageError("this image is not kept any more; choose it again.")
            self._kept.move_to_end(token)
            return self._kept[token]

    def remove(self, token: str) -> None:
        """Forgets one image."""
        with self._lock:
            upload = self._kept.pop(token, None)
        if upload is not None:
            upload.path.unlink(missing_ok=True)

    def _forget_oldest(self) -> None:
        while len(self._kept) > 1 and (
            len(self._kept) > self.limits.count
            or sum(upload.size for upload in self._kept.values()) > self.limits.total_bytes
        ):
            _, upload = self._kept.popitem(last=False)
            upload.path.unlink(missing_ok=True)


def _format_of(content: bytes) -> str:
    known = ", ".join(sorted({suffix[1:] for suffix in FORMATS.values()}))
    if not content:
        raise UploadTypeError("the file is empty (0 bytes).")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            kind = picture.format or "unknown"
    except READ_ERRORS as e:
        raise UploadTypeError(f"the file is no image that can be read ({known}).") from e
    if kind not in FORMATS:
        raise UploadTypeError(f"the image is of the kind {kind}; {known} are taken.")
    return kind


def _plain_name(name: str) -> str:
    """The last part of a name, printable and short."""
    name = "".join(c for c in os.path.basename(name.replace("\\", "/")) if c.isprintable())
    return name[-NAME_LENGTH:].strip() or "picture"
