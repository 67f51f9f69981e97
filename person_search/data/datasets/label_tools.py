# SPDX-License-Identifier: Apache-2.0
"""Reads exports of annotation tools: boxes drawn by hand, with identities beside them.

- CVAT, formats *CVAT for images 1.1* and *CVAT for video 1.1* (``annotations.xml``). An identity is
  the value of an attribute, the label, or in a video the track.
- Label Studio, format *JSON* (one list of tasks). An identity is the value of a control per region
  (``Choices``, ``TextArea``, ``Number`` with ``perRegion="true"``), or the label.

The same identity in two places of an export is the same person. Shapes other than boxes are left
out; a rotated box becomes the smallest upright one around it.

Boxes are XYXY in pixels, counted from 0.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from person_search.data.datasets.common import read_text
from person_search.data.datasets.frames import LabeledFrame, SplitOptions
from person_search.data.datasets.json_document import (
    IDENTITY_ATTRIBUTES,
    PERSON_CATEGORIES,
    AnnotationFileError,
    describe,
    parse_json,
)

UNKNOWN = ("", "-1", "?", "none", "null", "unknown", "unlabeled", "__undefined__")
"""Values of an identity that stand for a person without one, in any case."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")
"""Label Studio puts it before the name of an uploaded file."""
_CVAT_FRAME = re.compile(r"frame_(\d+)")


@dataclass(frozen=True)
class LabelOptions(SplitOptions):
    """How to read an export.

    Attributes:
        identity: Name of the attribute or control with the identity; ``label``, ``track`` or
            ``none``; "" selects the one that looks like an identity.
        labels: Labels of persons; empty: ``person`` and the like.
        every: Takes every n-th frame of a video.
        camera_from_folder: The folder of an image is its camera.
        single: Do not split; all frames become one data set.
    """

    identity: str = ""
    labels: tuple[str, ...] = ()
    every: int = 1
    camera_from_folder: bool = False
    single: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise ValueError(f"every is {self.every}; it must be at least 1")


@dataclass
class _Box:
    label: str
    box: tuple[float, float, float, float]
    values: dict[str, str] = field(default_factory=dict)  # attributes
    track: str = ""


@dataclass
class _Image:
    path: Path
    size: tuple[int, int]  # height, width; 0 if unknown
    boxes: list[_Box]


def load_labels(
    kind: str,
    file: str | Path,
    images: str | Path,
    options: LabelOptions,
    report: Callable[[str], None] = lambda text: None,
) -> tuple[list[LabeledFrame], list[str]]:
    """Loads an export.

    Args:
        kind: ``cvat`` or ``label_studio``.
        file: Exported file.
        images: Folder of the images.
        options: How to read it.
        report: Receives what was chosen and left out.

    Returns:
        The frames, and the names of their folders, which are the sequences.

    Raises:
        FileNotFoundError: If files are missing.
        ValueError: If the file has unexpected content.
    """
    file, images = Path(file), Path(images)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist, or is not a file")
    if not images.is_dir():
        raise FileNotFoundError(f"the folder of the images {images} does not exist (--images)")
    other: Counter[str] = Counter()
    read = {"cvat": _read_cvat, "label_studio": _read_label_studio}[kind]
    found = read(file, images, options, other)
    if other:
        shown = ", ".join(f"{count} x {name}" for name, count in sorted(other.items()))
        report(f"leaving out {shown}")
    absent = [image.path for image in found if not image.path.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{file} names {len(absent)} of {len(found)} images that do not exist, for example "
            f"{absent[0]}; choose the folder of the images with --images"
        )
    _check_sizes(file, found)
    person, used, labels = _identity_of([box for one in found for box in one.boxes], file, options)
    report(f"using the {used} as identity" if used else "using no identities")
    folders = [os.path.relpath(image.path.parent, images) for image in found]
    names = sorted(set(folders))
    frames = []
    for place, (image, folder) in enumerate(zip(found, folders, strict=True)):
        boxes = [box for box in image.boxes if box.label in labels]
        sequence = names.index(folder)
        frames.append(
            LabeledFrame(
                sequence=sequence,
                path=image.path,
                image_size=image.size,
                time=place / len(found),
                boxes=np.array([box.box for box in boxes], np.float64).reshape(-1, 4),
                persons=[person(box) for box in boxes],
                camera=sequence + 1 if options.camera_from_folder else None,
            )
        )
    return frames, names


def _check_sizes(file: Path, found: list[_Image]) -> None:
    paths = Counter(image.path for image in found)
    twice = [path for path, count in paths.items() if count > 1]
    if twice:
        raise ValueError(f"{file} lists the image {twice[0]} {paths[twice[0]]} times")
    if not any(image.boxes for image in found):
        raise ValueError(f"{file} contains no boxes in {len(found)} images")


def _identity_of(
    boxes: list[_Box], file: Path, options: LabelOptions
) -> tuple[Callable[[_Box], str | None], str, set[str]]:
    """Returns the identity of a box as a function, what it is, and the labels of persons."""
    held = sorted({name for box in boxes for name in box.values})
    all_labels = sorted({box.label for box in boxes})
    persons = {name for name in all_labels if name.strip().lower() in PERSON_CATEGORIES}
    wanted = options.identity
    if not wanted:
        likely = [name for name in held if IDENTITY_ATTRIBUTES.fullmatch(name)]
        if len(likely) > 1:
            raise ValueError(f"{file}: {likely} may be the identity; choose one with --identity")
        if likely:
            wanted = likely[0]
        elif not persons and not options.labels and len(all_labels) > 1:
            wanted = "label"
        elif any(box.track for box in boxes):
            wanted = "track"
        else:
            raise ValueError(
                f"{file} has no identities: the labels are {all_labels}, the attributes of boxes "
                f"{held or 'none'}. Choose --identity NAME of an attribute, 'label', or 'none' for "
                "boxes only"
            )
    labels = set(options.labels) or persons
    if not labels and (wanted == "label" or len(all_labels) == 1 or wanted in held):
        labels = set(all_labels)
    if not labels & set(all_labels):
        raise ValueError(
            f"{file}: none of the labels {all_labels} is {sorted(labels) or 'person'}; choose the "
            "labels of persons with --labels"
        )

    def known(value: str | None) -> str | None:
        value = (value or "").strip()
        return None if value.lower() in UNKNOWN else value

    if wanted in held:
        return lambda box: known(box.values.get(wanted)), f"attribute '{wanted}'", labels
    if wanted == "label":
        generic = PERSON_CATEGORIES
        return (
            lambda box: None if box.label.strip().lower() in generic else known(box.label),
            "label",
            set(options.labels) or set(all_labels),
        )
    if wanted == "track" and any(box.track for box in boxes):
        return lambda box: known(box.track), "track", labels
    if wanted == "none":
        return lambda box: None, "", labels
    raise ValueError(
        f"{file}: no box has the attribute {wanted!r}; attributes: {held or 'none'}"
        f"{'' if wanted != 'track' else '; only CVAT for video has tracks'}"
    )


def _upright(x: float, y: float, w: float, h: float, degrees: float, center: bool) -> tuple:
    """Returns the upright XYXY box around a box that is turned clockwise.

    Args:
        x: Left side before the rotation.
        y: Upper side before the rotation.
        w: Width.
        h: Height.
        degrees: Angle.
        center: Whether the box turns around its center, else around its upper left corner.
    """
    corners = np.array([[0, 0], [w, 0], [w, h], [0, h]])
    pivot = np.array([w / 2, h / 2]) if center else np.zeros(2)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = (corners - pivot) @ np.array([[c, s], [-s, c]]) + pivot + [x, y]
    return (*turned.min(axis=0).tolist(), *turned.max(axis=0).tolist())


# ---- CVAT ----------------------------------------------------------------------------------------


def _read_cvat(
    file: Path, images: Path, options: LabelOptions, other: Counter[str]
) -> list[_Image]:
    try:
        root = ElementTree.fromstring(read_text(file))
    except ElementTree.ParseError as e:
        raise ValueError(
            f"{file} is not XML, or is truncated ({e}); export it from CVAT as 'CVAT for images "
            "1.1' or 'CVAT for video 1.1' and unpack annotations.xml"
        ) from e
    if root.tag != "annotations":
        raise ValueError(f"{file} has the root <{root.tag}>; CVAT writes <annotations>")
    listed, tracks = root.findall("image"), root.findall("track")
    if tracks:
        return _read_cvat_tracks(file, images, tracks, root, options, other)
    found = []
    for entry in listed:
        name = entry.get("name", "")
        size = _number(entry, "height", file, int), _number(entry, "width", file, int)
        other.update(child.tag for child in entry if child.tag not in ("box", "tag"))
        boxes = [_cvat_box(box, box.get("label", ""), file) for box in entry.findall("box")]
        found.append(_Image(_find(images, PurePosixPath(name)), size, boxes))
    if not found:
        raise ValueError(f"{file} has neither images nor tracks")
    return found


def _read_cvat_tracks(
    file: Path,
    images: Path,
    tracks: list[ElementTree.Element],
    root: ElementTree.Element,
    options: LabelOptions,
    other: Counter[str],
) -> list[_Image]:
    """Reads tracks, which refer to frames by number."""
    by_frame: dict[int, list[_Box]] = {}
    for number, track in enumerate(tracks):
        other.update(child.tag for child in track if child.tag != "box")
        name = f"{file.stem}/{track.get('id', number)}"
        for box in track.findall("box"):
            if box.get("outside") != "1":
                one = _cvat_box(box, track.get("label", ""), file, name)
                by_frame.setdefault(_number(box, "frame", file, int), []).append(one)
    size = root.find("meta//original_size")
    height, width = (
        (_number(size, key, file, int, text=True) for key in ("height", "width"))
        if size is not None
        else (0, 0)
    )
    # CVAT names exported frames frame_000012; otherwise frame 12 is image 12 of the sorted folder
    folder = images / "images" if (images / "images").is_dir() else images
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    matches = [_CVAT_FRAME.fullmatch(path.stem) for path in files]
    if files and all(matches):
        numbered = {
            int(match[1]): path for match, path in zip(matches, files, strict=True) if match
        }
    else:
        numbered = dict(enumerate(files))
    absent = sorted(set(by_frame) - set(numbered))
    if absent:
        raise FileNotFoundError(
            f"{file} has boxes in {len(absent)} frames that {folder} lacks ({len(files)} images), "
            f"for example frame {absent[0]}; export the frames from CVAT ('Save images'), or "
            "extract all of them from the video"
        )
    stop = root.find("meta//stop_frame")
    last = int(stop.text or 0) if stop is not None else max(numbered, default=0)
    chosen = [number for number in sorted(numbered) if number <= last or number in by_frame]
    return [
        _Image(numbered[number], (height, width), by_frame.get(number, []))
        for number in chosen[:: options.every]
    ]


def _cvat_box(box: ElementTree.Element, label: str, file: Path, track: str = "") -> _Box:
    x1, y1, x2, y2 = (_number(box, key, file) for key in ("xtl", "ytl", "xbr", "ybr"))
    corners = (x1, y1, x2, y2)
    if box.get("rotation"):
        degrees = _number(box, "rotation", file)
        corners = _upright(x1, y1, x2 - x1, y2 - y1, degrees, center=True)
    values = {one.get("name", ""): one.text or "" for one in box.findall("attribute")}
    return _Box(label, corners, values, track)


def _number(
    entry: ElementTree.Element, key: str, file: Path, kind: type = float, text: bool = False
) -> Any:
    """Returns a number in an attribute of an element, or in the text of a child."""
    value = entry.findtext(key) if text else entry.get(key)
    try:
        number = kind(value)
    except (TypeError, ValueError) as e:
        state = "is absent" if value is None else f"is {value!r}"
        raise ValueError(f"{file}: <{entry.tag}> {key} {state}; a number is expected") from e
    if not np.isfinite(number):
        raise ValueError(f"{file}: <{entry.tag}> {key} is {value!r}; a finite number is expected")
    return number


# ---- Label Studio --------------------------------------------------------------------------------


def _read_label_studio(
    file: Path, images: Path, options: LabelOptions, other: Counter[str]
) -> list[_Image]:
    tasks = parse_json(file)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise AnnotationFileError(
            file,
            [f"contains {describe(tasks)}; export a list of tasks from Label Studio as 'JSON'"],
        )
    if tasks and not any("annotations" in task for task in tasks):
        raise AnnotationFileError(
            file,
            [
                f"the tasks have {sorted(tasks[0])}, not 'annotations': export as 'JSON'; "
                "'JSON-MIN' does not say which identity belongs to which box"
            ],
        )
    findings: list[str] = []
    found = []
    for row, task in enumerate(tasks):
        done = [
            one
            for one in task.get("annotations") or []
            if isinstance(one, dict) and not one.get("was_cancelled")
        ]
        if not done:
            continue  # the image has not been annotated
        chosen = next((one for one in done if one.get("ground_truth")), done[-1])
        try:
            size, boxes = _read_regions(chosen.get("result") or [], other)
            path = _find_upload(images, _image_of(task))
        except (KeyError, TypeError, ValueError) as e:
            what = f"{e} is absent" if isinstance(e, KeyError) else e
            findings.append(f"tasks[{row}] (id {task.get('id')}): {what}")
            continue
        found.append(_Image(path, size, boxes))
    if findings:
        raise AnnotationFileError(file, findings)
    return found


def _image_of(task: dict) -> str:
    """Returns the address of the image of a task, the first one with a known suffix."""
    for value in (task.get("data") or {}).values():
        if isinstance(value, str):
            path = parse_qs(urlsplit(value).query).get("d", [urlsplit(value).path])[0]
            if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES:
                return unquote(path)
    raise ValueError("data names no image")


def _read_regions(result: list, other: Counter[str]) -> tuple[tuple[int, int], list[_Box]]:
    """Returns the image size and the boxes. Entries of one region share their id."""
    size = (0, 0)
    boxes: dict[str, _Box] = {}
    labels: dict[str, str] = {}
    values: dict[str, dict[str, str]] = {}
    for entry in result:
        kind, value = entry["type"], entry["value"]
        if kind in ("rectangle", "rectanglelabels"):
            if entry.get("image_rotation"):
                raise ValueError(
                    f"the image was turned by {entry['image_rotation']} degrees in Label Studio; "
                    "turn the file instead"
                )
            width, height = entry["original_width"], entry["original_height"]
            size = (height, width)
            x, y, w, h = (
                value[key] / 100 * side
                for key, side in (("x", width), ("y", height), ("width", width), ("height", height))
            )
            box = _upright(x, y, w, h, value.get("rotation") or 0, center=False)
            label = ", ".join(value.get("rectanglelabels") or [])
            boxes[entry["id"]] = _Box(label or labels.get(entry["id"], ""), box)
        elif kind == "labels":  # of a box drawn without one
            labels[entry["id"]] = ", ".join(value["labels"])
            if entry["id"] in boxes:
                boxes[entry["id"]].label = labels[entry["id"]]
        elif kind in ("choices", "textarea", "number"):
            given = value[{"textarea": "text"}.get(kind, kind)]
            if isinstance(given, list):
                given = given[0] if given else None
            text = "" if given is None else str(given)  # a number may be 0
            values.setdefault(entry.get("id"), {})[entry["from_name"]] = text
        else:
            other[kind] += 1
    for region, found in values.items():
        if region in boxes:
            boxes[region].values.update(found)
    return size, list(boxes.values())


# ---- files ---------------------------------------------------------------------------------------


def _candidates(images: Path, name: PurePosixPath) -> Iterator[Path]:
    """Yields where an image may lie: with fewer and fewer of the folders before its name."""
    parts = [part for part in name.parts if part not in ("/", "..", ".")]
    for folder in (images, images / "images"):
        for start in range(len(parts)):
            yield folder.joinpath(*parts[start:])


def _find(images: Path, name: PurePosixPath) -> Path:
    """Returns the first candidate that exists, else the one with all folders."""
    candidates = list(_candidates(images, name)) or [images / "?"]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _find_upload(images: Path, name: str) -> Path:
    """Like :func:`_find`, also without the prefix of an upload."""
    path = PurePosixPath(name.replace("\\", "/"))
    found = _find(images, path)
    plain = path.with_name(_UPLOAD_PREFIX.sub("", path.name, count=1))
    return found if found.is_file() else _find(images, plain)
