# SPDX-License-Identifier: Apache-2.0
"""Reads the person search annotations of PoseTrack21 as annotation documents.

``train.json``, ``val.json`` and ``query.json`` are COCO-like: ``images`` with ``id`` and
``file_name`` (from the root of the data set), ``annotations`` with ``image_id``, ``bbox``
(x, y, width, height) and ``person_id``. A query is an annotation of ``query.json`` in an image of
``val.json``; it is searched for in all other images of ``val.json``. A video becomes a camera.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from person_search.data.datasets.common import DatasetLayout
from person_search.data.datasets.json_document import AnnotationFileError, describe, read_json

ANNOTATION_FOLDERS = ("posetrack_person_search", "annotations/posetrack_person_search")
LAYOUT = DatasetLayout(
    title="PoseTrack21",
    folders=("PoseTrack21", "posetrack21"),
    tree="""\
  PoseTrack21/
    images/train/<video>/<frame>.jpg         images of the training videos; images/val: test
    posetrack_person_search/train.json       training boxes and identities
    posetrack_person_search/val.json         test boxes and identities
    posetrack_person_search/query.json       queries""",
    advice="follow the instructions of the authors (https://github.com/anDoer/PoseTrack21).",
)


def posetrack21_documents(root: Path) -> dict[str, dict]:
    """Returns the annotation documents of the training and the test split.

    Args:
        root: Folder of the data set.

    Raises:
        IncompleteDatasetError: If a file is missing.
        AnnotationFileError: If a file has unexpected content.
    """
    places = [place for place in ANNOTATION_FOLDERS if (root / place).is_dir()]
    folder = places[0] if places else ANNOTATION_FOLDERS[0]
    LAYOUT.require(root, [*(f"{folder}/{x}.json" for x in ("train", "val", "query")), "images"])
    train, test, queries = (
        _read(root / folder / f"{name}.json") for name in ("train", "val", "query")
    )
    videos = sorted({_video(one) for part in (train, test) for one in part["images"].values()})
    cameras = {video: number for number, video in enumerate(videos, start=1)}
    documents = {
        name: _document(f"PoseTrack21 {name}", part, cameras)
        for name, part in (("train", train), ("test", test))
    }
    image_of = {one["file_name"]: one["id"] for one in documents["test"]["images"]}
    persons = {one["id"] for one in documents["test"]["persons"]}
    found = []
    for row, one in enumerate(queries["annotations"]):
        name = queries["images"][one["image_id"]]
        if name not in image_of or one["person_id"] not in persons:
            what = f"the image {name}" if name not in image_of else f"person {one['person_id']}"
            raise AnnotationFileError(
                root / folder / "query.json", [f"annotations[{row}]: val.json lacks {what}"]
            )
        person = {"person_id": one["person_id"], "bbox": one["bbox"]}
        found.append({"id": row, "image_id": image_of[name], **person})
    documents["test"]["queries"] = found
    return documents


def _video(name: str) -> str:
    return PurePosixPath(name).parent.as_posix()


def _read(path: Path) -> dict[str, Any]:
    """Returns ``images``, a file name by id, and ``annotations``, and checks what it uses."""
    document = read_json(path)
    findings = []
    for key in ("images", "annotations"):
        if not isinstance(document.get(key), list) or not document[key]:
            findings.append(f"{key} is {describe(document.get(key))}; a list is expected")
    if findings:
        raise AnnotationFileError(path, findings)
    images: dict[Any, str] = {}
    for row, one in enumerate(document["images"]):
        name = one.get("file_name") if isinstance(one, dict) else None
        if not isinstance(name, str) or one.get("id") is None or one["id"] in images:
            findings.append(f"images[{row}] is {describe(one)}; a file_name and a new id expected")
        else:
            images[one["id"]] = name
    for row, one in enumerate(document["annotations"]):
        if not isinstance(one, dict) or "person_id" not in one or "bbox" not in one:
            findings.append(f"annotations[{row}] is {describe(one)}; bbox and person_id expected")
        elif one.get("image_id") not in images and not findings:
            findings.append(f"annotations[{row}]: image_id {one.get('image_id')} is not an image")
    if findings:
        raise AnnotationFileError(path, findings)
    return {"images": images, "annotations": document["annotations"]}


def _document(title: str, part: dict[str, Any], cameras: dict[str, int]) -> dict:
    # the ids of the files exceed 32 bits
    number_of = {image: number for number, image in enumerate(part["images"])}
    persons = {one["person_id"] for one in part["annotations"]} - {None, -1}
    return {
        "info": {"description": title},
        "persons": [{"id": person} for person in sorted(persons)],
        "images": [
            {"id": number, "file_name": name, "cam_id": cameras[_video(name)]}
            for number, name in enumerate(part["images"].values())
        ],
        "annotations": [
            {
                "id": row,
                "image_id": number_of[one["image_id"]],
                "bbox": one["bbox"],
                "person_id": one["person_id"],
            }
            for row, one in enumerate(part["annotations"])
        ],
    }
