# SPDX-License-Identifier: Apache-2.0
"""Reads CDPS as annotation documents.

No description by its authors was found; the format is that which the reader of the toolbox psd2
(https://github.com/PatrickZad/psd2) expects. Below ``train`` and ``test``, two levels of folders
hold a file ``c<digit>.json`` per camera: a list of images with ``file_path`` (from ``train`` or
``test``), ``image_id``, ``ids`` (negative: unlabeled) and ``bboxes`` (center x, center y, width,
height, relative to the image). Below ``test``, ``search-new.json`` beside them lists the searches:
objects from an identity to ``{"query": image_id, "gallery": [image_id, ...]}``.

It is assumed that the first level of folders and the digit together name a camera.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from person_search.data.datasets.common import DatasetLayout, IrregularityLog
from person_search.data.datasets.image_sizes import image_sizes
from person_search.data.datasets.json_document import AnnotationFileError, describe, parse_json

SEARCHES = "search-new.json"
LAYOUT = DatasetLayout(
    title="CDPS",
    folders=("CDPS", "cdps"),
    tree="""\
  CDPS/
    train/<scene>/<group>/c<digit>.json      images, boxes and identities of a camera
    test/<scene>/<group>/c<digit>.json       the same for testing
    test/<scene>/<group>/search-new.json     queries and galleries
    train/..., test/...                      images, where file_path says""",
    advice="request it from its authors.",
)


def cdps_documents(root: Path) -> dict[str, dict]:
    """Returns the annotation documents of the training and the test split.

    Args:
        root: Folder of the data set.

    Raises:
        IncompleteDatasetError: If files are missing.
        AnnotationFileError: If a file has unexpected content.
    """
    LAYOUT.require(root, ["train", "test"])
    documents = {}
    for split in ("train", "test"):
        files = sorted(
            path for path in (root / split).glob("*/*/c*.json")
            if re.fullmatch(r"c\d+\.json", path.name)
        )  # fmt: skip
        if not files:
            raise LAYOUT.missing(root, root / split / "<scene>" / "<group>" / "c1.json")
        documents[split], images = _document(root, split, files)
    searches = sorted((root / "test").glob(f"*/*/{SEARCHES}"))
    if not searches:
        raise LAYOUT.missing(root, root / "test" / "<scene>" / "<group>" / SEARCHES)
    test = documents["test"]
    box_of = {
        (one["image_id"], one["person_id"]): one["bbox"]
        for one in reversed(test["annotations"])  # the first box of an image counts
    }
    test["queries"], test["galleries"] = [], []
    for path in searches:
        for person, image, gallery in _read_searches(path, images):
            if (image, person) not in box_of:
                raise AnnotationFileError(
                    path, [f"person {person} is not in the image of the query"]
                )
            query = {"id": len(test["queries"]), "image_id": image, "person_id": person}
            test["queries"].append({**query, "bbox": box_of[image, person]})
            test["galleries"].append(gallery)
    return documents


def _document(root: Path, split: str, files: list[Path]) -> tuple[dict, dict[Any, int]]:
    """Returns the document of a split, and the number of each ``image_id``."""
    entries = [(path, one) for path in files for one in _read_images(path)]
    paths = [root / split / one["file_path"] for _, one in entries]
    sizes = image_sizes(root, f"cdps_{split}_sizes", paths, LAYOUT, IrregularityLog())
    cameras = sorted({(path.parents[1].name, path.stem) for path in files})
    number_of: dict[Any, int] = {}
    images: list[dict] = []
    annotations: list[dict] = []
    for (path, one), (height, width) in zip(entries, sizes.tolist(), strict=True):
        if one["image_id"] in number_of:
            raise AnnotationFileError(path, [f"the image_id {one['image_id']!r} is listed twice"])
        if not height:
            raise ValueError(f"{root / split / one['file_path']} is not a readable image")
        number = number_of[one["image_id"]] = len(images)
        images.append(
            {
                "id": number,
                "file_name": f"{split}/{one['file_path']}",
                "width": width,
                "height": height,
                "cam_id": cameras.index((path.parents[1].name, path.stem)) + 1,
            }
        )
        for person, (x, y, w, h) in zip(one["ids"], one["bboxes"], strict=True):
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "bbox": [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height],
                    "person_id": int(person) if int(person) >= 0 else None,
                }
            )
    persons = sorted({one["person_id"] for one in annotations} - {None})
    document = {
        "info": {"description": f"CDPS {split}"},
        "persons": [{"id": person} for person in persons],
        "images": images,
        "annotations": annotations,
    }
    return document, number_of


def _read_images(path: Path) -> list[dict]:
    listed = parse_json(path)
    if not isinstance(listed, list):
        raise AnnotationFileError(path, [f"contains {describe(listed)}; a list is expected"])
    findings = []
    for row, one in enumerate(listed):
        try:
            boxes = np.array(one["bboxes"], np.float64).reshape(-1, 4)
            persons = np.array(one["ids"], np.int64)
            plain = isinstance(one["file_path"], str) and one["image_id"] is not None
            good = plain and persons.shape == (len(boxes),) and np.isfinite(boxes).all()
        except (KeyError, TypeError, ValueError):
            good = False
        if not good:
            findings.append(
                f"[{row}] is {describe(one)}; file_path, image_id, ids and as many bboxes of 4 "
                "numbers are expected"
            )
        elif boxes.size and np.abs(boxes).max() > 2:
            findings.append(f"[{row}]: bboxes are not relative to the image: {boxes[0].tolist()}")
    if findings:
        raise AnnotationFileError(path, findings)
    return listed


def _read_searches(path: Path, images: dict[Any, int]) -> list[tuple[int, int, list[int]]]:
    """Returns identity, number of the query image and gallery of every search."""
    found = []
    searches = parse_json(path)
    try:
        for one in searches:
            ((person, search),) = one.items()
            gallery = [images[image] for image in search["gallery"]]
            found.append((int(person), images[search["query"]], gallery))
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        what = f"the image {e} is in no c<digit>.json" if isinstance(e, KeyError) else str(e)
        raise AnnotationFileError(path, [f"entry {len(found)}: {what}"]) from e
    return found
