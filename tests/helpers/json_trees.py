# SPDX-License-Identifier: Apache-2.0
"""Writes small data sets by hand: a COCO-style JSON with its images, and MOT sequences."""

import json
from pathlib import Path

from mat_trees import write_image

SIZE = (90, 160)  # height, width of every image


def small_document(**changes: object) -> dict:
    """Four images of two cameras: anna in 1, 2 and 3, bert in 2 and 4, and unlabeled persons."""
    document = {
        "images": [
            {"id": 11, "file_name": "a/1.jpg", "height": 90, "width": 160, "cam_id": 1},
            {"id": 12, "file_name": "a/2.jpg", "height": 90, "width": 160, "cam_id": 1},
            {"id": 13, "file_name": "b/1.jpg", "height": 90, "width": 160, "cam_id": 2},
            {"id": 14, "file_name": "b/2.jpg", "height": 90, "width": 160, "cam_id": 2},
        ],
        "annotations": [
            {"id": 101, "image_id": 11, "bbox": [10, 5, 20, 60], "person_id": 7},
            {"id": 102, "image_id": 11, "bbox": [60, 5, 20, 60], "person_id": None},
            {"id": 103, "image_id": 12, "bbox": [15.5, 5, 20.25, 60], "person_id": 7},
            {"id": 104, "image_id": 12, "bbox": [90, 5, 20, 60], "person_id": 3},
            {"id": 105, "image_id": 13, "bbox": [30, 5, 25, 70], "person_id": 7},
            {"id": 106, "image_id": 13, "bbox": [100, 5, 25, 70], "person_id": -1},
            {"id": 107, "image_id": 14, "bbox": [40, 5, 30, 70], "person_id": 3},
        ],
    }
    return document | changes


def write_json_set(root: Path, document: object | None = None, name: str = "set.json") -> Path:
    """Writes images and annotation file; returns the file."""
    document = small_document() if document is None else document
    if isinstance(document, dict) and isinstance(document.get("images"), list):
        for seed, image in enumerate(document["images"]):
            file_name = image.get("file_name") if isinstance(image, dict) else None
            if isinstance(file_name, str) and file_name.strip() and not (root / file_name).exists():
                write_image(root / file_name, *SIZE, seed)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def write_mot_sequence(
    folder: Path, rows: list[tuple], frames: int, rate: int = 2, size: tuple[int, int] = SIZE
) -> None:
    """Writes a sequence; a row is frame, track, left, top, width, height, flag, ..."""
    for number in range(1, frames + 1):
        write_image(folder / "img1" / f"{number:06d}.jpg", *size, number)
    (folder / "gt").mkdir()
    lines = [",".join(f"{value:g}" for value in row) for row in rows]
    (folder / "gt" / "gt.txt").write_text("\n".join(lines) + "\n")
    (folder / "seqinfo.ini").write_text(
        f"[Sequence]\nname={folder.name}\nimDir=img1\nframeRate={rate}\nseqLength={frames}\n"
        f"imWidth={size[1]}\nimHeight={size[0]}\nimExt=.jpg\n"
    )
