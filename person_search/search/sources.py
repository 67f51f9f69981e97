# SPDX-License-Identifier: Apache-2.0
"""Images and videos to index, with the camera and time of each.

Times are seconds since 1970. A time without a time zone is that of the camera clock; it is stored
as if it were UTC, so that such times compare with each other, and displayed as given.
"""

import csv
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath, PurePosixPath

from PIL import ExifTags, Image

from person_search.search.folder_store import MANIFEST
from person_search.search.images import image_suffixes, missing_decoder
from person_search.search.names import from_stored, printable, to_stored
from person_search.search.remote import Place, RemotePath, parse_place
from person_search.search.results import REPORT, RESULTS, SHEET
from person_search.search.videos import VIDEO_SUFFIXES


@dataclass(frozen=True)
class Source:
    """A file to index.

    Attributes:
        root: Folder given by the user, local or at a URL.
        path: Path within it, with ``/``, as stored in a gallery (see names.py).
        is_video: Whether the file is a video.
        size: File size in bytes.
        mtime_ns: Modification time.
    """

    root: Place
    path: str
    is_video: bool
    size: int
    mtime_ns: int

    @property
    def file(self) -> Place:
        """Path of the file."""
        return self.root / from_stored(self.path)


@dataclass
class Listing:
    """Result of :func:`find_sources`.

    Attributes:
        sources: Files to index, sorted by path.
        left_out: Images and videos that are not indexed, with the reason.
        others: Number of files of other kinds by suffix.
    """

    sources: list[Source] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)


def find_sources(places: Iterable[str | os.PathLike], recursive: bool = False) -> Listing:
    """Lists images and videos.

    Galleries, results of ``query`` and links out of a folder are left out.

    Args:
        places: Folders or single files; also at URLs of fsspec.
        recursive: Include subfolders. Links to folders are not followed.

    Raises:
        FileNotFoundError: If a place does not exist, or nothing was found.
        ValueError: If a single file is neither an image nor a video.
    """
    listing = Listing()
    paths = [parse_place(place) for place in places]
    for place in paths:
        if isinstance(place, RemotePath):
            for file, size, time in place.files(recursive):
                if _is_known(PurePosixPath(file.name)):
                    root = place.parent if file == place else place
                    stored, suffix = to_stored(file.relative_to(root)), Path(file.name).suffix
                    is_video = suffix.lower() in VIDEO_SUFFIXES
                    listing.sources.append(Source(root, stored, is_video, size, time))
                else:
                    listing.others[printable(PurePosixPath(file.name).suffix.lower())] += 1
        elif place.is_dir():
            _walk(place.resolve(), recursive, listing)
        elif place.is_file():
            if not _is_known(place):
                hint = missing_decoder(place)
                known = ", ".join((*image_suffixes(), *VIDEO_SUFFIXES))
                raise ValueError(
                    f"'{place}' is neither an image nor a video ({known})"
                    f"{f'; to read it: {hint}' if hint else ''}."
                )
            _add(place.resolve().parent, place.resolve(), listing)
        else:
            raise FileNotFoundError(f"the folder, image or video '{place}' does not exist.")
    if not listing.sources:
        names = ", ".join(map(str, paths))
        raise FileNotFoundError(
            f"'{names}' contains no image or video"
            f"{'' if recursive else ' (--recursive includes subfolders)'}"
            f"{''.join(f'; {line}' for line in describe_others(listing.others))}"
            f"{''.join(f'; {name} is {why}' for name, why in [*listing.left_out.items()][:3])}."
        )
    unique = {(source.root, source.path): source for source in listing.sources}
    listing.sources = sorted(unique.values(), key=lambda source: (str(source.root), source.path))
    return listing


def describe_others(others: Mapping[str, int]) -> list[str]:
    """Returns one phrase per suffix of files that are not read, with a hint where there is one."""
    lines = []
    for suffix, number in sorted(others.items(), key=lambda item: (-item[1], item[0])):
        hint = missing_decoder(f"x{suffix}")
        files = f"{number} file{'' if number == 1 else 's'}"
        lines.append(f"{files} {suffix or 'without a suffix'}{f' ({hint})' if hint else ''}")
    return lines


def _walk(root: Path, recursive: bool, listing: Listing) -> None:
    pending = [root]  # no recursion: folders may be nested deeper than Python's stack
    while pending:
        folder = pending.pop()
        is_result = _is_result_folder(folder)
        try:
            if (folder / MANIFEST).exists():  # a gallery inside the folder of its images
                continue
            items = sorted(os.scandir(folder), key=lambda item: item.name)
        except OSError as e:
            if folder == root:
                raise
            listing.left_out[str(folder)] = f"an unreadable folder ({e.strerror})"
            continue
        for item in items:
            path = Path(item.path)
            if item.is_dir(follow_symlinks=False):
                if recursive:
                    pending.append(path)
            elif _is_known(path) and (item.is_symlink() or item.is_file()):
                if is_result and item.name == SHEET:
                    listing.left_out[str(path)] = "a result of 'person-search query'"
                else:
                    _add(root, path, listing)
            elif not path.is_dir() and not (is_result and item.name in (RESULTS, REPORT)):
                listing.others[printable(path.suffix.lower())] += 1


def _is_result_folder(folder: Path) -> bool:
    """Whether the folder holds results that :func:`~person_search.search.write_results` wrote."""
    try:
        with (folder / RESULTS).open("rb") as file:
            return json.loads(file.readline(1_000_000))["kind"] == "search"
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _add(root: Path, path: Path, listing: Listing) -> None:
    try:
        target = path.resolve(strict=True)
        status = target.stat()
    except (OSError, RuntimeError) as e:  # RuntimeError: a loop of links, before Python 3.13
        missing = isinstance(e, FileNotFoundError) and path.is_symlink()
        reason = "a link to a missing file" if missing else getattr(e, "strerror", "") or str(e)
        listing.left_out[str(path)] = reason
        return
    if root not in target.parents:
        listing.left_out[str(path)] = "a link that leaves the folder"
    elif stat.S_ISREG(status.st_mode):
        listing.sources.append(
            Source(
                root,
                to_stored(path.relative_to(root).as_posix()),
                path.suffix.lower() in VIDEO_SUFFIXES,
                status.st_size,
                status.st_mtime_ns,
            )
        )


def _is_known(path: PurePath) -> bool:
    return path.suffix.lower() in (*image_suffixes(), *VIDEO_SUFFIXES)


# ---- camera and time -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """Where and when an image was taken.

    Attributes:
        camera: Camera name; "" if unknown.
        time: Seconds since 1970; None if unknown.
    """

    camera: str = ""
    time: float | None = None


@dataclass(frozen=True)
class OriginRules:
    """Sources of camera and time: first the table, then the other options, then EXIF.

    Attributes:
        camera: Camera of all images.
        camera_from_folder: The folder of an image is named after its camera.
        time: Time of all images, or of the first frame of all videos.
        table: Origins by path (``Source.path``).
    """

    camera: str = ""
    camera_from_folder: bool = False
    time: float | None = None
    table: Mapping[str, Origin] = field(default_factory=dict)

    def of(self, source: Source, local: str | os.PathLike | None = None) -> Origin:
        """Returns camera and time of a file; for a video, the time of its first frame.

        Args:
            source: The file.
            local: Its local copy, if there is one.
        """
        row = self.table.get(source.path, Origin())
        exif = Origin() if source.is_video else read_exif(local or source.file)
        folder = source.file.parent.name if self.camera_from_folder else ""
        times = (row.time, self.time, exif.time)
        return Origin(
            printable(row.camera or self.camera or folder or exif.camera),
            next((time for time in times if time is not None), None),
        )


def read_exif(path: str | os.PathLike) -> Origin:
    """Reads camera model and time from the EXIF data of an image, as far as present."""
    try:
        with Image.open(path) as image:
            exif = image.getexif()
            details = exif.get_ifd(ExifTags.IFD.Exif)
    except Exception:  # Pillow raises almost anything for damaged files; read_image reports them
        return Origin()
    camera = str(exif.get(ExifTags.Base.Model, "")).strip("\0 ")
    taken = details.get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
    zone = details.get(ExifTags.Base.OffsetTimeOriginal)
    try:
        day, clock = str(taken).strip("\0 ").split(" ")
        text = f"{day.replace(':', '-')}T{clock}{str(zone or '').strip(chr(0) + ' ')}"
        return Origin(camera, parse_time(text))
    except ValueError:
        return Origin(camera)


def parse_time(text: str, *, end: bool = False) -> float:
    """Parses an ISO 8601 time such as ``2026-05-01 12:30``.

    Args:
        text: The time; a date without a time means midnight at the start of that day.
        end: The time ends a range: a date without a time then means the end of that day.

    Returns:
        Seconds since 1970.

    Raises:
        ValueError: If the text is not an ISO 8601 time.
    """
    text = text.strip()
    try:
        time = datetime.fromisoformat(text)
        if end and len(text) <= len("2026-05-01"):  # a date without a time
            time += timedelta(days=1, microseconds=-1)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as e:
        raise ValueError(
            f"'{text}' is not an ISO 8601 time, for example 2026-05-01 or 2026-05-01T12:30:00."
        ) from e


def read_table(path: str | os.PathLike) -> dict[str, Origin]:
    """Reads a CSV file with the columns ``file`` (path within the folder), ``camera``, ``time``.

    The file is UTF-8; names of files may contain other bytes, as on disk.

    Args:
        path: The CSV file.

    Returns:
        Origins by path.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not CSV text, a column is missing or a time is invalid.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the table '{path}' does not exist.")
    rows: dict[str, Origin] = {}
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        try:
            columns = [printable(name) for name in reader.fieldnames or []]
            if "file" not in columns or not {"camera", "time"} & set(columns):
                raise ValueError(
                    f"it has the columns {columns}; required are 'file', and 'camera' or 'time' "
                    "or both. It must be UTF-8 with commas between the columns"
                )
            for row in reader:
                text = (row.get("time") or "").strip()
                time = parse_time(text) if text else None
                name = Path((row["file"] or "").strip()).as_posix()
                rows[name] = Origin(printable((row.get("camera") or "").strip()), time)
        except (ValueError, csv.Error) as e:
            raise ValueError(f"line {reader.line_num} of '{path}': {e}") from e
    return rows
