# SPDX-License-Identifier: Apache-2.0
"""Identities for a gallery without labels: proposed by clustering, corrected by a person.

Every edit is written to an annotation file (COCO-style JSON), from which the next start continues.
Videos are left out, because an annotation file refers to image files.

Shape shorthand: N persons of all images, D embedding dimension.
Boxes are XYXY pixels of the upright image (EXIF orientation applied).
"""

import importlib.util
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from person_search.data.datasets.json_document import parse_document, read_json
from person_search.data.datasets.json_writer import write_document, xyxy_to_xywh
from person_search.search.errors import GalleryError
from person_search.search.gallery import Gallery
from person_search.search.table import ImageKey

UNLABELED, REMOVED = -1, -2
"""Groups of persons without identity, and of boxes that do not show a person."""
MARK = "Labeled with person-search label"
"""Description in the files, so that no other file is continued."""
MAX_PERSONS = 50_000
"""Number of persons that can be labeled at once; clustering takes quadratic time."""
MAX_UNDO = 100


def check_installed() -> None:
    """Checks the extra package of the clustering.

    Raises:
        GalleryError: If scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise GalleryError(
            "proposing identities requires scikit-learn, which is not installed: pip install "
            "'person-search[label]'."
        )


def propose_groups(feats: np.ndarray, image_of: np.ndarray, min_size: int = 2) -> np.ndarray:
    """Groups persons by their embeddings (HDBSCAN).

    An image shows a person once: of several persons of a group in one image, the one that is most
    similar to the group stays in it.

    Args:
        feats: Embeddings (N, D) of unit length.
        image_of: Image of each person (N,).
        min_size: Minimum number of persons of a group, at least 2.

    Returns:
        Group of each person (N,) int32, the largest one first; ``UNLABELED`` for persons that
        resemble no group.
    """
    groups = np.full(len(feats), UNLABELED, np.int32)
    if len(feats) < max(min_size, 3):
        return groups
    from sklearn.cluster import HDBSCAN

    # distances of unit vectors are in the order of their similarities
    labels = HDBSCAN(min_cluster_size=min_size, min_samples=1, copy=True).fit_predict(feats)
    kept = []
    for label in range(labels.max(initial=-1) + 1):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(-_similarity(feats[rows]), kind="stable")]
        rows = rows[np.unique(image_of[rows], return_index=True)[1]]
        if len(rows) >= min_size:
            kept.append(rows)
    for group, rows in enumerate(sorted(kept, key=len, reverse=True)):
        groups[rows] = group
    return groups


def _similarity(feats: np.ndarray) -> np.ndarray:
    """Returns the similarity (n,) of each person to the mean of a group (n, D)."""
    mean = feats.mean(axis=0)
    return feats @ (mean / max(float(np.linalg.norm(mean)), 1e-6))


@dataclass(frozen=True)
class Edit:
    """A change of the groups.

    Attributes:
        action: ``merge`` the groups of the persons, ``split`` the persons off as a new group,
            ``reject`` their identity, ``remove`` their boxes, ``rename`` or ``check`` the groups of
            the persons, or ``undo`` the last change.
        persons: Persons, the first one in the group that stays or is renamed.
        name: New name.
    """

    action: str
    persons: list[int] = field(default_factory=list)
    name: str = ""

    __pydantic_config__ = {"extra": "forbid"}  # label_app.py reads requests into this class


@dataclass(frozen=True)
class _Image:
    key: ImageKey  # in the gallery
    file_name: str  # in the annotation file
    size: tuple[int, int]
    camera: str


@dataclass
class _State:
    groups: np.ndarray  # (N,) int32
    names: dict[int, str]
    checked: set[int]

    def copy(self) -> "_State":
        return _State(self.groups.copy(), dict(self.names), set(self.checked))


class Labeling:
    """The persons of a gallery in groups; safe for several threads.

    Args:
        gallery: The gallery.
        output: Annotation file. An existing one is continued.
        min_score: Minimum detection score.
        min_size: See :func:`propose_groups`.

    Attributes:
        gallery: As given.
        output: As given.
        num_images: Number of images.
        left_out: Number of frames of videos.
        boxes: Boxes of the persons (N, 4).

    Raises:
        GalleryError: If there are no persons, or too many.
        ValueError: If the output was not written by this class, or has persons that would be lost.
    """

    def __init__(
        self, gallery: Gallery, output: Path, min_score: float = 0.0, min_size: int = 2
    ) -> None:
        self.gallery, self.output, self._min_score = gallery, output, min_score
        self._lock = threading.Lock()
        self._undo: list[_State] = []
        listed = _list_images(gallery, output.absolute().parent)
        self._images, self.left_out = listed
        self.num_images = len(self._images)
        held = [gallery.persons_in(image.key) for image in self._images]
        kept = [rows[:, 4] >= min_score for rows, _ in held]
        parts = [(r[k], f[k]) for (r, f), k in zip(held, kept, strict=True)]
        rows = np.concatenate([np.zeros((0, 5), np.float32), *(part for part, _ in parts)])
        if not 0 < len(rows) <= MAX_PERSONS:
            raise GalleryError(
                f"the gallery has {len(rows)} persons of score {min_score:g} or more in "
                f"{self.num_images} images (videos are left out); 1 to {MAX_PERSONS} can be "
                "labeled at once. --min-score selects fewer."
            )
        self.boxes, self._scores = rows[:, :4], rows[:, 4]
        self._feats = np.concatenate([feats for _, feats in parts])
        counts = [len(part) for part, _ in parts]
        self.image_of = np.repeat(np.arange(len(parts)), counts)
        if output.exists():
            self._state = self._resume()
        else:
            groups = propose_groups(self._feats, self.image_of, min_size)
            numbers = range(int(groups.max(initial=-1)) + 1)
            self._state = _State(groups, {i: f"person {i + 1}" for i in numbers}, set())
            self._write()

    def box(self, person: int) -> list[float]:
        """Returns the box of a person.

        Raises:
            ValueError: If there is no such person.
        """
        return self.boxes[self._known([person])[0]].tolist()

    def pixels(self, person: int) -> np.ndarray:
        """Reads the image of a person; see :meth:`Gallery.read_image`."""
        return self.gallery.read_image(self._images[self.image_of[person]].key)

    def facts(self) -> dict:
        """Returns the groups for the browser; persons least similar to their group come last."""
        with self._lock:
            state = self._state
            groups: list[dict] = []
            for group, name in state.names.items():
                rows = np.flatnonzero(state.groups == group)
                rows = rows[np.argsort(-_similarity(self._feats[rows]), kind="stable")]
                groups.append(
                    {
                        "name": name,
                        "checked": group in state.checked,
                        "persons": rows.tolist(),
                        "twice": len(set(self.image_of[rows].tolist())) < len(rows),
                    }
                )
            groups.sort(key=lambda one: (one["checked"], -len(one["persons"])))
            return {
                "file": self.output.name,
                "images": self.num_images,
                "groups": groups,
                "unlabeled": np.flatnonzero(state.groups == UNLABELED).tolist(),
                "removed": int((state.groups == REMOVED).sum()),
                "undo": bool(self._undo),
            }

    def edit(self, edit: Edit) -> None:
        """Changes the groups and writes the file.

        Raises:
            ValueError: If the edit is invalid.
            OSError: If the file cannot be written; the edit is then not applied.
        """
        with self._lock:
            before = self._state
            if edit.action == "undo":
                if not self._undo:
                    raise ValueError("there is nothing to undo.")
                self._state = self._undo[-1]
            else:
                self._state = self._changed(edit)
            try:
                self._write()
            except OSError:
                self._state = before
                raise
            if edit.action == "undo":
                self._undo.pop()
            else:
                self._undo = [*self._undo, before][-MAX_UNDO:]

    def _known(self, persons: Sequence[int]) -> np.ndarray:
        if not persons or not all(0 <= person < len(self.boxes) for person in persons):
            raise ValueError(f"no such persons; they are numbered 0 to {len(self.boxes) - 1}.")
        return np.array(persons)

    def _changed(self, edit: Edit) -> _State:
        """Returns the state after an edit."""
        state, persons = self._state.copy(), self._known(edit.persons)
        own = [group for group in dict.fromkeys(state.groups[persons].tolist()) if group >= 0]
        if edit.action in ("merge", "rename", "check") and not own:
            raise ValueError("choose a person of a group.")
        if edit.action == "merge":
            state.groups[persons] = own[0]
            state.groups[np.isin(state.groups, own)] = own[0]
        elif edit.action == "split":
            new = max(state.names, default=-1) + 1
            state.groups[persons] = new
            number = len(state.names) + 1
            while f"person {number}" in state.names.values():
                number += 1
            state.names[new] = f"person {number}"
        elif edit.action in ("reject", "remove"):
            state.groups[persons] = UNLABELED if edit.action == "reject" else REMOVED
        elif edit.action == "rename":
            name = " ".join(edit.name.split())
            if not name or len(name) > 100:
                raise ValueError("a name has 1 to 100 characters.")
            if name in (other for group, other in state.names.items() if group != own[0]):
                raise ValueError(f"another group is named '{name}'; merge the two groups instead.")
            state.names[own[0]] = name
        elif edit.action == "check":
            state.checked = state.checked - {*own} if own[0] in state.checked else {
                *state.checked, *own
            }  # fmt: skip
        else:
            raise ValueError(f"unknown action '{edit.action[:40]}'.")
        held = set(state.groups.tolist())
        state.names = {group: name for group, name in state.names.items() if group in held}
        state.checked &= held
        return state

    # ---- the file --------------------------------------------------------------------------------

    def _write(self) -> None:
        state = self._state
        cameras = sorted({image.camera for image in self._images} - {""})
        images = [
            {
                "id": number,
                "file_name": image.file_name,
                **({"height": image.size[0], "width": image.size[1]} if all(image.size) else {}),
                **({"cam_id": cameras.index(image.camera) + 1} if image.camera else {}),
            }
            for number, image in enumerate(self._images)
        ]
        annotations = [
            {
                "id": person,
                "image_id": int(self.image_of[person]),
                "bbox": xyxy_to_xywh(self.boxes[person].tolist()),
                "person_id": state.names.get(group),
                "score": round(float(self._scores[person]), 4),
            }
            for person, group in enumerate(state.groups.tolist())
            if group != REMOVED
        ]
        persons = [
            {"id": name, "checked": group in state.checked} for group, name in state.names.items()
        ]
        document = {
            "info": {"description": MARK, "min_score": self._min_score},
            "categories": [{"id": 1, "name": "person"}],
            "persons": persons,
            "images": images,
            "annotations": [{**one, "category_id": 1} for one in annotations],
        }
        self.output.parent.mkdir(parents=True, exist_ok=True)
        write_document(self.output, document)

    def _resume(self) -> _State:
        """Returns the state in the file. Persons that the file does not cover are unlabeled."""
        document = read_json(self.output)
        info = document["info"] if isinstance(document.get("info"), dict) else {}
        before = info.get("min_score", self._min_score)  # not in files of earlier versions
        if (
            type(before) not in (int, float)
            or info.get("description") != MARK
            or parse_document(document)[1]
        ):
            raise ValueError(
                f"{self.output} exists and was not written by 'person-search label', or was "
                "changed since: choose another --output."
            )
        if self._min_score > before:
            raise ValueError(
                f"{self.output} has persons of score {before:g} or more; with --min-score "
                f"{self._min_score:g} some would be lost: choose at most {before:g}, or another "
                "--output."
            )
        names = {group: one["id"] for group, one in enumerate(document["persons"])}
        checked = {i for i, one in enumerate(document["persons"]) if one.get("checked")}
        group_of = {name: group for group, name in names.items()}
        file_of = {one["id"]: one["file_name"] for one in document["images"]}
        found = {
            (file_of[one["image_id"]], *one["bbox"]): group_of.get(one["person_id"], UNLABELED)
            for one in document["annotations"]
        }
        known = set(file_of.values())
        covered = (self._scores >= before).tolist()
        groups = np.full(len(self.boxes), UNLABELED, np.int32)
        lost = set(found)
        for person, image in enumerate(self.image_of.tolist()):
            file_name = self._images[image].file_name
            key = (file_name, *xyxy_to_xywh(self.boxes[person].tolist()))
            removed = covered[person] and file_name in known
            groups[person] = found.get(key, REMOVED if removed else UNLABELED)
            lost.discard(key)
        if lost:
            raise ValueError(
                f"{self.output} has {len(lost)} persons that the gallery lacks, for example in "
                f"'{min(lost)[0]}', whose labels would be lost: choose another --output."
            )
        held = set(groups.tolist())
        names = {group: name for group, name in names.items() if group in held}
        return _State(groups, names, checked & held)


def _list_images(gallery: Gallery, folder: Path) -> tuple[list[_Image], int]:
    """Returns the images of a gallery and the number of frames, which are left out.

    Args:
        gallery: The gallery.
        folder: Folder to which file names are relative if it contains the image.
    """
    images = []
    left_out = 0
    for image in gallery.all_images():
        if image.frame is not None:
            left_out += 1
            continue
        place = gallery.image_path(image.key)
        if not isinstance(place, Path):
            raise GalleryError(
                f"a data set names local files, and '{place}' is none; index copies."
            )
        path = place.absolute()
        inside = path.is_relative_to(folder)
        name = path.relative_to(folder).as_posix() if inside else path.as_posix()
        stored = os.fsencode(name).decode("utf-8", "surrogateescape")
        images.append(_Image(image.key, stored, image.size, image.camera))
    return images, left_out
