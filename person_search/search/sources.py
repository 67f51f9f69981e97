# SPDX-License-Identifier: Apache-2.0
"""What there is to be indexed: images and videos of folders, with camera and time.

Times are seconds since 1970. A time without a zone is that of the camera's clock; it is kept as if
it were UTC, so that such times compare with each other, and shown as it was.
"""

import csv
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from PIL import ExifTags, Image

from person_search.search.store import MANIFEST
from person_search.search.videos import VIDEO_SUFFIXES

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Source:
    """One file to be indexed.

    Args:
        root: folder that was named. path: within it, with ``/``.
        is_video: a video, not an image.
        size: bytes. mtime_ns: time of the last change.
    """

    root: Path
    path: str
    is_video: bool
    size: int
    mtime_ns: int

    @property
    def file(self) -> Path:
        return self.root / self.path


@dataclass
class Listing:
    """What a search through folders has found.

    Args:
        sources: sorted by path.
        left_out: links that lead nowhere or out of the folder, with the reason.
        others: files that are neither images nor videos.
    """

    sources: list[Source] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    others: int = 0


def find_sources(places: Iterable[str | os.PathLike], recursive: bool = False) -> Listing:
    """Lists images and videos.

    Args:
        places: folders, or single files.
        recursive: folders within folders too. Links to folders are not followed.

    Raises:
        FileNotFoundError: a place is not there. ValueError: a single file is neither, or nothing at
            all was found.
    """
    listing = Listing()
    for place in map(Path, places):
        if place.is_dir():
            _walk(place.resolve(), place.resolve(), recursive, listing)
        elif place.is_file():
            if not _suffix_of(place):
                known = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
                raise ValueError(f"'{place}' is neither an image nor a video ({known}).")
            _add(place.resolve().parent, place.resolve(), listing)
        else:
            raise FileNotFoundError(f"there is no folder, image or video '{place}'.")
    if not listing.sources:
        names = ", ".join(str(place) for place in places)
        raise FileNotFoundError(
            f"'{names}' holds no image or video"
            f"{'' if recursive else ' (folders within are searched with --recursive)'}."
        )
    unique = {(source.root, source.path): source for source in listing.sources}
    listing.sources = sorted(unique.values(), key=lambda source: (str(source.root), source.path))
    return listing


def _walk(root: Path, folder: Path, recursive: bool, listing: Listing) -> None:
    if (folder / MANIFEST).exists():  # a gallery inside the folder of its images
        return
    for item in sorted(os.scandir(folder), key=lambda item: item.name):
        path = Path(item.path)
        if item.is_dir(follow_symlinks=False):
            if recursive:
                _walk(root, path, recursive, listing)
        elif _suffix_of(path) and (item.is_symlink() or item.is_file()):
            _add(root, path, listing)
        elif not path.is_dir():
            listing.others += 1


def _add(root: Path, path: Path, listing: Listing) -> None:
    target = path.resolve()
    try:
        status = target.stat()
    except OSError as e:
        reason = "a link to nothing" if path.is_symlink() else str(e)
        listing.left_out[str(path)] = reason
        return
    if root not in target.parents:
        listing.left_out[str(path)] = "a link that leaves the folder"
    elif stat.S_ISREG(status.st_mode):
        listing.sources.append(
            Source(
                root,
                path.relative_to(root).as_posix(),
                _suffix_of(path) in VIDEO_SUFFIXES,
                status.st_size,
                status.st_mtime_ns,
            )
        )


def _suffix_of(path: Path) -> str:
    """The suffix in lower case if we read such files; "" otherwise."""
    suffix = path.suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES else ""


# ---- camera and time -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """Where and when an image was taken; "" and None for unknown."""

    camera: str = ""
    time: float | None = None


@dataclass(frozen=True)
class OriginRules:
    """Where camera and time come from. What a table says counts first, then the options, then EXIF.

    Args:
        camera: of all images.
        camera_from_folder: the name of the folder that an image lies in.
        time: of all images, the start for videos.
        table: path (as in ``Source.path``) -> origin.
    """

    camera: str = ""
    camera_from_folder: bool = False
    time: float | None = None
    table: Mapping[str, Origin] = field(default_factory=dict)

    def of(self, source: Source) -> Origin:
        """Camera and time of a file, the time of a video being its start."""
        row = self.table.get(source.path, Origin())
        exif = Origin() if source.is_video else read_exif(source.file)
        folder = source.file.parent.name if self.camera_from_folder else ""
        times = (row.time, self.time, exif.time)
        return Origin(
            row.camera or self.camera or folder or exif.camera,
            next((time for time in times if time is not None), None),
        )


def read_exif(path: Path) -> Origin:
    """Camera model and time from the EXIF data of an image, as far as it has such."""
    try:
        with Image.open(path) as picture:
            exif = picture.getexif()
            details = exif.get_ifd(ExifTags.IFD.Exif)
    except Exception:  # Pillow raises almost anything for damaged files; reading the image tells
        return Origin()
    camera = str(exif.get(ExifTags.Base.Model, "")).strip("\0 ")
    taken = details.get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
    zone = details.get(ExifTags.Base.OffsetTimeOriginal)
    try:
        date, clock = str(taken).strip("\0 ").split(" ")
        text = f"{date.replace(':', '-')}T{clock}{str(zone or '').strip(chr(0) + ' ')}"
        return Origin(camera, parse_time(text))
    except ValueError:
        return Origin(camera)


def parse_time(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time, e.g. ``2026-05-01 12:30``.

    Raises:
        ValueError: it is none.
    """
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError as e:
        raise ValueError(
            f"'{text}' is no time; write it like 2026-05-01 or 2026-05-01T12:30:00."
        ) from e
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def read_table(path: str | os.PathLike) -> dict[str, Origin]:
    """Reads a CSV file with the columns ``file`` (path within the folder), ``camera``, ``time``.

    Raises:
        FileNotFoundError: it is not there. ValueError: a column is missing or a time is none.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no table '{path}'.")
    rows: dict[str, Origin] = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if "file" not in columns or not {"camera", "time"} & set(columns):
            raise ValueError(
                f"'{path}' has the columns {columns}; it needs 'file', and 'camera' or 'time' or "
                "both."
            )
        for row in reader:
            text = (row.get("time") or "").strip()
            try:
                time = parse_time(text) if text else None
            except ValueError as e:
                raise ValueError(f"line {reader.line_num} of '{path}': {e}") from e
            name = Path((row["file"] or "").strip()).as_posix()
            rows[name] = Origin((row.get("camera") or "").strip(), time)
    return rows
