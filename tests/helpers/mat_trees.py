# SPDX-License-Identifier: Apache-2.0
"""Writes tiny CUHK-SYSU and PRW trees by hand, in the form of the original MATLAB files.

Independent of the synthetic generator, so that the two cannot share a mistake. The functions only
wrap plain Python contents in structs and cells.
Boxes are x, y, w, h.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

Box = tuple[float, float, float, float]


def write_image(path: Path, height: int, width: int, seed: int = 0) -> None:
    """Writes a JPEG of smooth random color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(coarse).resize((width, height)).save(path, quality=90)


def struct(fields: list[str], rows: list[tuple]) -> np.ndarray:
    """A (1, n) MATLAB struct array."""
    array = np.empty((1, len(rows)), dtype=[(field, "O") for field in fields])
    for index, row in enumerate(rows):
        array[0, index] = row
    return array


def cells(values: list) -> np.ndarray:
    """A (n, 1) MATLAB cell array."""
    array = np.empty((len(values), 1), dtype=object)
    for index, value in enumerate(values):
        array[index, 0] = value
    return array


def idlocate(box: Box | None) -> np.ndarray:
    """A box in the narrowest unsigned type, as MATLAB wrote it; no box is float64 (1, 0)."""
    if box is None:
        return np.zeros((1, 0))
    return np.array([box], np.uint8 if max(box) < 256 else np.uint16)


def ishard(box: Box | None, hard: int = 0) -> np.ndarray:
    """The flag beside a box; empty where the box is."""
    return np.zeros((1, 0)) if box is None else np.array([[hard]], np.uint8)


def write_cuhk_sysu(
    root: Path,
    images: dict[str, list[Box]],
    pool: list[str],
    train: list[list[tuple[str, Box]]],
    queries: list[tuple[str, Box]],
    galleries: dict[int, list[list[tuple[str, Box | None]]]],
    size: tuple[int, int] = (120, 300),
    compress: bool = False,
) -> Path:
    """Writes a CUHK-SYSU tree.

    Args:
        root: folder to write.
        images: boxes of each image; a box with an odd first number is hard.
        pool: names of the test images.
        train: for each training identity, its images and boxes.
        queries: image and box of each query.
        galleries: for each gallery size, for each query, images and boxes (None: not there).
        size: height and width of every image.
        compress: whether the files are compressed, as MATLAB does by default.
    """
    for seed, name in enumerate(images):
        write_image(root / "Image" / "SSM" / name, *size, seed)
    protocols = root / "annotation" / "test" / "train_test"
    protocols.mkdir(parents=True)

    def scene(name: str, box: Box | None) -> tuple:
        return name, idlocate(box), ishard(box)

    img = []
    for name, boxes in images.items():
        persons = [(idlocate(box), ishard(box, int(box[0]) % 2)) for box in boxes]
        img.append((name, len(boxes), struct(["idlocate", "ishard"], persons)))

    def save(path: Path, name: str, value: np.ndarray) -> None:
        savemat(path, {name: value}, do_compression=compress)

    save(root / "annotation" / "Images.mat", "Img", struct(["imname", "nAppear", "box"], img))
    save(root / "annotation" / "pool.mat", "pool", cells(pool))
    scene_fields = ["imname", "idlocate", "ishard"]
    persons = [
        struct(
            ["idname", "nAppear", "scene"],
            [(f"p{pid}", len(scenes), struct(scene_fields, [scene(*s) for s in scenes]))],
        )
        for pid, scenes in enumerate(train)
    ]
    save(protocols / "Train.mat", "Train", cells(persons))
    for gallery_size, rows in galleries.items():
        entries = []
        for index, ((name, box), row) in enumerate(zip(queries, rows, strict=True)):
            query = struct([*scene_fields, "idname"], [(*scene(name, box), f"p{900 + index}")])
            entries.append((query, struct(scene_fields, [scene(*item) for item in row])))
        name = f"TestG{gallery_size}"
        save(protocols / f"{name}.mat", name, struct(["Query", "Gallery"], entries))
    return root


def small_cuhk_sysu(root: Path, **changes: object) -> Path:
    """A clean set: 3 training images with 2 identities, 4 test images with 2 queries."""
    content = {
        "images": {
            "s1.jpg": [(1, 5, 40, 80), (100, 5, 40, 80), (200, 10, 30, 60)],
            "s2.jpg": [(2, 5, 40, 80), (50, 5, 20, 90)],
            "s3.jpg": [(7, 7, 30, 70)],
            "s4.jpg": [(200, 5, 60, 80), (10, 5, 40, 80)],
            "s5.jpg": [(20, 5, 40, 80), (80, 5, 40, 80)],
            "s6.jpg": [(260, 5, 30, 80), (30, 5, 40, 80)],
            "s7.jpg": [(70, 5, 40, 80)],
        },
        "pool": ["s7.jpg", "s4.jpg", "s5.jpg", "s6.jpg"],
        "train": [
            [("s1.jpg", (1, 5, 40, 80)), ("s2.jpg", (2, 5, 40, 80))],
            [("s1.jpg", (200, 10, 30, 60)), ("s3.jpg", (7, 7, 30, 70))],
        ],
        "queries": [("s4.jpg", (200, 5, 60, 80)), ("s5.jpg", (80, 5, 40, 80))],
        "galleries": {
            50: [
                [("s5.jpg", (20, 5, 40, 80)), ("s7.jpg", None)],
                [("s6.jpg", (260, 5, 30, 80)), ("s4.jpg", None)],
            ],
            100: [
                [("s5.jpg", (20, 5, 40, 80)), ("s6.jpg", None), ("s7.jpg", None)],
                [("s6.jpg", (260, 5, 30, 80)), ("s7.jpg", None), ("s4.jpg", None)],
            ],
        },
    }
    return write_cuhk_sysu(root, **(content | changes))


def cuhk_sysu_of_training_images(root: Path, images: dict, train: list) -> Path:
    """A set with the given training images and identities, and two test images with one query."""
    test_images = {"s4.jpg": [(10, 5, 40, 80)], "s5.jpg": [(20, 5, 40, 80)]}
    return small_cuhk_sysu(
        root,
        images=images | test_images,
        pool=["s4.jpg", "s5.jpg"],
        train=train,
        queries=[("s4.jpg", (10, 5, 40, 80))],
        galleries={100: [[("s5.jpg", (20, 5, 40, 80))]]},
    )


def write_subset(root: Path, file: str, variable: str, rows: list[tuple]) -> None:
    """Adds a subset of CUHK-SYSU: (query image, box, gallery) per query, with a third field."""
    fields = ["imname", "idlocate", "ishard"]

    def scene(name, box):
        return name, idlocate(box), ishard(box)

    entries = []
    for name, box, gallery in rows:
        query = struct([*fields, "idname"], [(*scene(name, box), "p1")])
        entries.append((query, struct(fields, [scene(*item) for item in gallery]), 1))
    path = root / "annotation" / "test" / "subset" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {variable: struct(["Query", "Gallery", "Extra"], entries)})


def write_prw(
    root: Path,
    frames: dict[str, list[tuple]],
    train: list[str],
    test: list[str],
    train_ids: list[int],
    test_ids: list[int],
    queries: list[tuple],
    size: tuple[int, int] = (90, 160),
    line_end: str = "\r\n",
) -> Path:
    """Writes a PRW tree.

    Args:
        root: folder to write.
        frames: for each frame name its rows (id, x, y, w, h); the three variable names take turns.
        train: names of the training frames.
        test: names of the test frames.
        train_ids: raw training identities, rising.
        test_ids: raw test identities, rising.
        queries: lines (id, x, y, w, h, frame name).
        size: height and width of every frame.
        line_end: how lines of ``query_info.txt`` end; the release has CRLF.
    """
    (root / "annotations").mkdir(parents=True)
    for index, (name, rows) in enumerate(frames.items()):
        write_image(root / "frames" / f"{name}.jpg", *size, index)
        variable = ("box_new", "anno_file", "anno_previous")[index % 3]
        table = np.array(rows, np.float64).reshape(-1, 5)
        savemat(root / "annotations" / f"{name}.jpg.mat", {variable: table})
    savemat(root / "frame_train.mat", {"img_index_train": cells(train)})
    savemat(root / "frame_test.mat", {"img_index_test": cells(test)})
    savemat(root / "ID_train.mat", {"ID_train": np.array([train_ids], np.uint16)})
    savemat(root / "ID_test.mat", {"ID_test2": np.array([test_ids], np.uint16)})
    lines = ["{:d} {:.4f} {:.4f} {:.4f} {:.4f} {}".format(*query) for query in queries]
    text = "".join(line + line_end for line in lines)
    (root / "query_info.txt").write_bytes(text.encode())
    return root


def small_prw(root: Path, **changes: object) -> Path:
    """A clean set: 2 training frames, 5 test frames of 3 cameras, id 932 in training as in PRW."""
    content = {
        "frames": {
            "c1s1_000001": [(1, 10.25, 5, 20.5, 60), (-2, 60, 5, 20, 60), (932, 100, 5, 20, 60)],
            "c2s1_000001": [(1, 40, 5, 20, 60), (3, 70, 5, 20, 60)],
            "c1s1_000101": [(479, 20, 10, 25, 70), (-2, 70, 10, 25, 70)],
            "c1s1_000201": [(479, 30, 10, 25, 70), (481, 90, 10, 25, 70)],
            "c2s1_000101": [(479, 40, 10, 25, 70), (1, 100, 10, 25, 70)],
            "c3s2_000101": [(481, 50, 10, 25, 70)],
            "c3s2_000201": [(-2, 50, 10, 25, 70)],
        },
        "train": ["c1s1_000001", "c2s1_000001"],
        "test": ["c2s1_000101", "c1s1_000101", "c1s1_000201", "c3s2_000101", "c3s2_000201"],
        "train_ids": [1, 3, 932],
        "test_ids": [479, 481],
        "queries": [
            (479, 20, 10, 25, 70, "c1s1_000101"),
            (481, 90, 10, 25, 70, "c1s1_000201"),
            (479, 40, 10, 25, 70, "c2s1_000101"),
        ],
    }
    return write_prw(root, **(content | changes))
