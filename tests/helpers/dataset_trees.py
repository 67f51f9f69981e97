# SPDX-License-Identifier: Apache-2.0
"""Writes small trees in the formats of PoseTrack21, MovieNet-PS, CDPS, CVAT and Label Studio."""

import json
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from mat_trees import cells, idlocate, ishard, struct, write_image
from scipy.io import savemat

SIZE = (90, 160)  # height, width of every image


def write_posetrack21(root: Path, annotations: str = "posetrack_person_search") -> Path:
    """Two videos for training, two for testing; person 7 is in both test videos, 8 in one."""
    frames = {
        "train": {"000001_a_train": [[(1, 10), (2, 80)], [(1, 20)]],
                  "000002_b_train": [[(3, 30), (1, 90)]]},
        "val": {"000003_c_val": [[(7, 10), (8, 80)], [(7, 20), (8, 90)]],
                "000004_d_val": [[(7, 40)], [(9, 50)]]},
    }  # fmt: skip
    (root / annotations).mkdir(parents=True)
    for split, videos in frames.items():
        document: dict = {"images": [], "annotations": []}
        for video, rows in videos.items():
            for number, persons in enumerate(rows):
                name = f"images/{split}/{video}/{number:06d}.jpg"
                write_image(root / name, *SIZE, number)
                image = 10_000_000_000 * int(video[:6]) + number  # beyond 32 bits
                document["images"].append({"id": image, "file_name": name, "vid_id": video[:6]})
                document["annotations"] += [
                    {"image_id": image, "bbox": [x, 5, 20.5, 60], "person_id": person,
                     "category_id": 1, "keypoints": [0] * 51}
                    for person, x in persons
                ]  # fmt: skip
        (root / annotations / f"{split}.json").write_text(json.dumps(document))
    document["annotations"] = [document["annotations"][0], document["annotations"][3]]
    (root / annotations / "query.json").write_text(json.dumps(document))
    return root


Box = tuple[int, int, int, int]
MOVIE_BOXES: dict[str, list[Box]] = {
    "tt1_s1.jpg": [(10, 5, 30, 70), (90, 5, 30, 70)],
    "tt1_s2.jpg": [(20, 5, 30, 70)],
    "tt2_s1.jpg": [(30, 5, 30, 70), (100, 8, 30, 70)],
    "tt2_s2.jpg": [(40, 5, 30, 70)],
    "tt2_s3.jpg": [(50, 5, 30, 70)],
}


def write_movienet(root: Path, folder: str = "annotation", images: str = "Image/SSM",
                   cuhk_train: bool = False) -> Path:  # fmt: skip
    """Persons 0 and 1 in tt1 for training; two queries in tt2, with galleries of 2000 and 4000."""
    for seed, name in enumerate(MOVIE_BOXES):
        write_image(root / images / name, *SIZE, seed)
    protocols = root / folder / "test" / "train_test"
    protocols.mkdir(parents=True)
    fields = ["imname", "idlocate", "ishard"]

    def scene(name: str, place: int | None) -> tuple:
        box = None if place is None else MOVIE_BOXES[name][place]
        return name, idlocate(box), ishard(box)

    rows = [
        (
            name,
            len(boxes),
            struct(["idlocate", "ishard"], [(idlocate(b), ishard(b)) for b in boxes]),
        )
        for name, boxes in MOVIE_BOXES.items()
    ]
    savemat(root / folder / "Images.mat", {"Img": struct(["imname", "nAppear", "box"], rows)})
    persons = [[("tt1_s1.jpg", 0), ("tt1_s2.jpg", 0)], [("tt1_s1.jpg", 1)]]
    train = np.empty((len(persons), 3), object)
    for row, scenes in enumerate(persons):
        listed = np.empty((len(scenes), 3), object)
        for place, one in enumerate(scenes):
            listed[place] = scene(*one)
        train[row, 0], train[row, 1], train[row, 2] = f"nm{row}", len(scenes), listed
    if cuhk_train:
        train = cells([
            struct(["idname", "nAppear", "scene"],
                   [("nm", len(scenes), struct(fields, [scene(*one) for one in scenes]))])
            for scenes in persons
        ])  # fmt: skip
    savemat(protocols / "Train_app10.mat", {"Train": train})
    queries = [("tt2_s1.jpg", 0), ("tt2_s1.jpg", 1)]
    galleries = {
        2000: [[("tt2_s2.jpg", 0), ("tt2_s3.jpg", None)], [("tt2_s3.jpg", 0)]],
        4000: [[("tt2_s2.jpg", 0), ("tt2_s3.jpg", None), ("tt2_s1.jpg", None)],
               [("tt2_s3.jpg", 0), ("tt2_s2.jpg", None)]],
    }  # fmt: skip
    for size, listed in galleries.items():
        entries = [
            (struct([*fields, "idname"], [(*scene(*query), "nm")]),
             struct(fields, [scene(*one) for one in row]))
            for query, row in zip(queries, listed, strict=True)
        ]  # fmt: skip
        name = f"TestG{size}"
        savemat(protocols / f"{name}.mat", {name: struct(["Query", "Gallery"], entries)})
        pool = [name for name in MOVIE_BOXES if name.startswith("tt2")]
        savemat(root / folder / f"pool_{size}.mat", {"pool": cells(pool)})
    return root


def write_cdps(root: Path) -> Path:
    """One training group and one test group with two cameras; person 5 is in three test images."""
    content = {
        "train/s1/g1/c1": [[(1, 0.2), (-1, 0.6)], [(1, 0.3), (4, 0.7)]],
        "test/s1/g1/c1": [[(5, 0.2), (-2, 0.6)], [(5, 0.3)]],
        "test/s1/g1/c2": [[(6, 0.4), (5, 0.8)], []],
    }
    for place, rows in content.items():
        split, scene, group, camera = place.split("/")
        listed = []
        for number, persons in enumerate(rows):
            name = f"{scene}/{group}/{camera}_{number}.jpg"
            write_image(root / split / name, *SIZE, number)
            listed.append({
                "file_path": name,
                "image_id": f"{split}_{camera}_{number}",
                "ids": [person for person, _ in persons],
                "bboxes": [[x, 0.5, 0.1, 0.8] for _, x in persons],
            })  # fmt: skip
        (root / f"{place}.json").write_text(json.dumps(listed))
    gallery = ["test_c1_1", "test_c2_0", "test_c2_1"]
    searches = [{"5": {"query": "test_c1_0", "gallery": gallery}}]
    (root / "test/s1/g1/search-new.json").write_text(json.dumps(searches))
    return root


def cvat_box(x: float, label: str = "person", attributes: dict | None = None, **more) -> str:
    """One <box> of 20 x 60 pixels; ``label=""`` leaves the label to the track."""
    named = {"label": label, "xtl": x, "ytl": 5, "xbr": x + 20, "ybr": 65, **more}
    words = " ".join(
        f"{key}={quoteattr(str(value))}" for key, value in named.items() if value != ""
    )
    inner = "".join(
        f"<attribute name={quoteattr(name)}>{value}</attribute>"
        for name, value in (attributes or {}).items()
    )
    return f"<box {words}>{inner}</box>"


def write_cvat_images(folder: Path, images: dict[str, list[str]]) -> Path:
    """``annotations.xml`` in the format "CVAT for images 1.1", and the images."""
    lines = []
    for number, (name, boxes) in enumerate(images.items()):
        write_image(folder / name, *SIZE, number)
        lines.append(f'<image id="{number}" name={quoteattr(name)} width="160" height="90">'
                     f"{''.join(boxes)}</image>")  # fmt: skip
    return _write_xml(folder, lines)


def write_cvat_video(folder: Path, tracks: list[str], frames: int) -> Path:
    """``annotations.xml`` in the format "CVAT for video 1.1", and its exported frames."""
    for number in range(frames):
        write_image(folder / "images" / f"frame_{number:06d}.PNG", *SIZE, number)
    size = "<original_size><width>160</width><height>90</height></original_size>"
    meta = f"<meta><task><stop_frame>{frames - 1}</stop_frame>{size}</task></meta>"
    return _write_xml(folder, [meta, *tracks])


def _write_xml(folder: Path, lines: list[str]) -> Path:
    path = folder / "annotations.xml"
    text = "\n".join(lines)
    path.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{text}</annotations>')
    return path


def label_studio_box(region: str, x: float, label: str = "person", **value) -> dict:
    """A box of 20 x 60 pixels as a region with percentages."""
    place = {"x": 100 * x / 160, "y": 100 * 5 / 90, "width": 12.5, "height": 100 * 60 / 90}
    return {
        "id": region, "type": "rectanglelabels", "from_name": "label", "to_name": "image",
        "original_width": 160, "original_height": 90, "image_rotation": 0,
        "value": {**place, "rotation": 0, "rectanglelabels": [label], **value},
    }  # fmt: skip


def label_studio_choice(region: str, name: str, control: str = "person_id") -> dict:
    """The choice of a region."""
    return {"id": region, "type": "choices", "from_name": control, "to_name": "image",
            "value": {"choices": [name]}}  # fmt: skip


def label_studio_task(number: int, image: str, *results: dict, **annotation) -> dict:
    return {"id": number, "data": {"image": image},
            "annotations": [{"id": number, "result": list(results), **annotation}]}  # fmt: skip
