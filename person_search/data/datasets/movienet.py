# SPDX-License-Identifier: Apache-2.0
"""Reads MovieNet-PS (also called MovieNet-CS) as annotation documents.

The files resemble those of CUHK-SYSU, see cuhk_sysu_files.py, except that there is one training set
per number of appearances (``Train_app10.mat`` and others), one list of test images per gallery size
(``pool_2000.mat`` and others), and that ``Train`` may be a cell array with the columns name, number
and scenes. Box coordinates are kept as they are in the files, like those of CUHK-SYSU.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from person_search.data.datasets.common import DatasetLayout
from person_search.data.datasets.cuhk_sysu_files import read_images_mat, read_protocol_mat
from person_search.data.datasets.matlab import (
    box_or_none,
    cell_strings,
    load_variable,
    struct_rows,
    text,
)

ANNOTATION_FOLDERS = ("annotation", "anno_mvn-cs")
IMAGE_FOLDERS = ("Image/SSM", "Image")
LAYOUT = DatasetLayout(
    title="MovieNet-PS",
    folders=("MovieNet-PS", "movienet"),
    tree="""\
  MovieNet-PS/
    Image/SSM/...                            images; or Image/...
    annotation/Images.mat                    every image and every box; or anno_mvn-cs/...
    annotation/pool_2000.mat                 names of the test images; also pool_4000, pool_10000
    annotation/test/train_test/Train_app10.mat   training identities; also Train_app30 to app100
    annotation/test/train_test/TestG2000.mat     protocol; also TestG4000, TestG10000""",
    advice="download it from https://huggingface.co/datasets/ZhengPeng7/MovieNet-PS.",
)

_Key = tuple[str, tuple[int, ...]]
"""Image name and box (x, y, w, h) in whole pixels, by which boxes of different files are equal."""


def movienet_documents(
    root: Path,
    appearances: int = 10,
    gallery_sizes: Iterable[int] = (),
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, dict]:
    """Returns the annotation documents of the training and the test split.

    Args:
        root: Folder of the data set.
        appearances: Selects the training set ``Train_app<N>.mat``: 10, 30, 50, 70 or 100.
        gallery_sizes: Gallery sizes of the protocols, the default one first; empty: all that exist.
        report: Receives a description of each step, and labels without a box.

    Raises:
        IncompleteDatasetError: If a file is missing.
        ValueError: If the files contradict each other; names the file.
    """
    places = [place for place in ANNOTATION_FOLDERS if (root / place).is_dir()]
    folder = places[0] if places else ANNOTATION_FOLDERS[0]
    image_places = [place for place in IMAGE_FOLDERS if (root / place).is_dir()]
    image_folder = image_places[0] if image_places else IMAGE_FOLDERS[0]
    protocols = f"{folder}/test/train_test"
    sizes = list(gallery_sizes) or sorted(
        int(match[1])
        for path in (root / protocols).glob("TestG*.mat")
        if (match := re.fullmatch(r"TestG([1-9]\d*)\.mat", path.name))
    )
    train_mat = f"{protocols}/Train_app{appearances}.mat"
    needed = [f"{folder}/Images.mat", train_mat, image_folder]
    for size in sizes or [2000]:
        needed += [f"{protocols}/TestG{size}.mat", f"{folder}/pool_{size}.mat"]
    LAYOUT.require(root, needed)
    report("reading Images.mat")
    images = read_images_mat(root / folder / "Images.mat")
    boxes: dict[str, list[tuple[float, ...]]] = {name: [] for name in images["names"].tolist()}
    for image, box in zip(images["box_image"].tolist(), images["boxes"].tolist(), strict=True):
        boxes[str(images["names"][image])].append(tuple(box))

    train = list(_read_train(root / train_mat))
    claims = [(person, key) for person, keys in enumerate(train) for key in keys]
    names = sorted({name for _, (name, _) in claims})
    if not claims:
        raise ValueError(f"{root / train_mat} contains no boxes")
    title = f"MovieNet-PS train (app{appearances})"
    train_document = _document(title, image_folder, names, boxes, claims, report)

    parts = {}
    for size in sizes:
        report(f"reading TestG{size}.mat")
        path = root / protocols / f"TestG{size}.mat"
        parts[size] = read_protocol_mat(path, f"TestG{size}")
    pool = {
        name
        for size in sizes
        for name in cell_strings(load_variable(root / folder / f"pool_{size}.mat", ["pool"]))
    }
    queries = _queries(parts[sizes[0]])
    claims = [(query, _key(*one)) for query, one in enumerate(queries)]
    galleries: dict[str, list[list[str]]] = {}
    matches: dict[str, list[tuple[int, str, list[float]]]] = {}
    for size, part in parts.items():
        if _queries(part) != queries:
            raise ValueError(
                f"{root / protocols / f'TestG{size}.mat'} has other queries than "
                f"TestG{sizes[0]}.mat; convert one size at a time (--gallery-sizes {size})"
            )
        listed = part["names"].tolist()
        galleries[f"g{size}"] = [
            [listed[image] for image in row if image >= 0] for row in part["gallery"].tolist()
        ]
        positives = (part["positive_query"], part["positive_image"], part["positive_boxes"])
        matches[f"g{size}"] = [
            (query, listed[image], box)
            for query, image, box in zip(*(one.tolist() for one in positives), strict=True)
        ]
        claims += [(query, _key(name, box)) for query, name, box in matches[f"g{size}"]]
    absent = {name for rows in galleries.values() for row in rows for name in row} - pool
    absent |= {name for name, _ in queries} - pool
    if absent:
        raise ValueError(
            f"{root / folder}/pool_*.mat lack {len(absent)} images of the protocols, for example "
            f"{min(absent)!r}"
        )
    test = _document("MovieNet-PS test", image_folder, sorted(pool), boxes, claims, report)
    number_of = {name: number for number, name in enumerate(sorted(pool))}
    test["queries"] = [
        {"id": row, "image_id": number_of[name], "bbox": list(box), "person_id": row}
        for row, (name, box) in enumerate(queries)
    ]
    test["protocols"] = {
        name: {
            "galleries": [[number_of[image] for image in row] for row in rows],
            # stated, because a gallery may list an image of the person that is not a match
            "matches": [
                {"query_id": query, "image_id": number_of[image], "bbox": box}
                for query, image, box in matches[name]
            ],
        }
        for name, rows in galleries.items()
    }
    return {"train": train_document, "test": test}


def _key(name: str, box: Sequence[float]) -> _Key:
    return name, tuple(int(value) for value in box)


def _queries(part: dict[str, np.ndarray]) -> list[tuple[str, tuple[float, ...]]]:
    names = part["names"].tolist()
    return [
        (names[image], tuple(box))
        for image, box in zip(
            part["query_image"].tolist(), part["query_boxes"].tolist(), strict=True
        )
    ]


def _read_train(path: Path) -> Iterator[list[_Key]]:
    """Yields the images and boxes of each training identity."""
    train = load_variable(path, ["Train"])
    cells = train.reshape(-1)
    if train.dtype.names is None and len(cells) and np.asarray(cells[0]).dtype.names is None:
        if train.ndim != 2 or train.shape[1] < 3:
            raise ValueError(f"{path}: Train has the shape {train.shape}; 3 columns are expected")
        persons = [row[2] for row in train]  # columns: name, number, scenes
    else:
        persons = [
            scenes
            for number, cell in enumerate(cells)
            for (scenes,) in struct_rows(np.asarray(cell), ["scene"], f"{path}: Train{{{number}}}")
        ]
    for number, scenes in enumerate(persons):
        where = f"{path}: Train({number + 1})"
        if scenes.dtype.names is not None:
            rows: Iterable[tuple] = struct_rows(scenes, ["imname", "idlocate"], where)
        elif scenes.ndim == 2 and scenes.shape[1] >= 2:
            rows = [(row[0], row[1]) for row in scenes]
        else:
            raise ValueError(f"{where}: scenes of the shape {scenes.shape} are unknown")
        found = ((text(name), box_or_none(box, where)) for name, box in rows)
        yield [_key(name, box.tolist()) for name, box in found if box is not None]


def _document(
    title: str,
    image_folder: str,
    names: list[str],
    boxes: dict[str, list[tuple[float, ...]]],
    claims: list[tuple[int, _Key]],
    report: Callable[[str], None],
) -> dict:
    """Returns the document of some images.

    Args:
        title: Description.
        image_folder: Folder of the images below the root.
        names: Names of the images.
        boxes: Boxes of every image.
        claims: Identity, image and box of the labeled boxes; the first claim of a box counts.
        report: Receives the labels without a box.
    """
    unknown = sorted(set(names) - boxes.keys())
    if unknown:
        raise ValueError(f"{title}: the image {unknown[0]!r} has no entry in Images.mat")
    person_of: dict[_Key, int] = {}
    for person, key in claims:
        person_of.setdefault(key, person)
    annotations: list[dict] = []
    for number, name in enumerate(names):
        for box in boxes[name]:
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "bbox": list(box),
                    "person_id": person_of.pop(_key(name, box), None),
                }
            )
    lost = sorted(person_of)
    if lost:
        name, lost_box = lost[0]
        report(
            f"{title}: {len(lost)} labels without a box in Images.mat are not used, for example "
            f"{list(lost_box)} in {name!r}"
        )
    return {
        "info": {"description": title},
        "persons": [{"id": number} for number in range(1 + max(person for person, _ in claims))],
        "images": [
            {"id": number, "file_name": f"{image_folder}/{name}"}
            for number, name in enumerate(names)
        ],
        "annotations": annotations,
    }
