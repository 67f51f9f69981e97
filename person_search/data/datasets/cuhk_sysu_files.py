# SPDX-License-Identifier: Apache-2.0
"""Reads the MATLAB files of CUHK-SYSU into plain arrays, which are cached.

Shape shorthand: N images, B boxes, S labeled boxes of training identities, Q queries, X gallery
images of one query, P positives of all queries, M distinct images of one protocol.
Boxes are left, top, width, height as in the files.
"""

import logging
import re
from pathlib import Path

import numpy as np

from person_search.data.datasets.cache import cached_arrays
from person_search.data.datasets.common import DatasetLayout, pad_rows
from person_search.data.datasets.matlab import (
    box_or_none,
    cell_strings,
    load_variable,
    stream_struct,
    struct_rows,
    text,
)

logger = logging.getLogger(__name__)

IMAGES_MAT = "annotation/Images.mat"
POOL_MAT = "annotation/pool.mat"
PROTOCOL_FOLDER = "annotation/test/train_test"
TRAIN_MAT = f"{PROTOCOL_FOLDER}/Train.mat"
IMAGE_FOLDER = "Image/SSM"
GALLERY_SIZES = (50, 100, 500, 1000, 2000, 4000)
SUBSETS = {
    "occlusion": ("annotation/test/subset/Occlusion.mat", "Occlusion1"),
    "low_resolution": ("annotation/test/subset/Resolution.mat", "Test_Size"),
}
"""Protocols of difficult queries with galleries of their own: file and variable."""

CUHK_SYSU_LAYOUT = DatasetLayout(
    title="CUHK-SYSU",
    folders=("CUHK-SYSU", "cuhk_sysu"),
    tree="""\
  CUHK-SYSU/
    Image/SSM/s<N>.jpg                       18,184 images, train and test together
    annotation/Images.mat                    every image and every box
    annotation/pool.mat                      names of the test images
    annotation/test/train_test/Train.mat     training identities
    annotation/test/train_test/TestG100.mat  protocol; also TestG50, 500, 1000, 2000, 4000
    annotation/test/subset/Occlusion.mat     protocol of occluded queries; also Resolution""",
    advice="request the archive from the authors "
    "(http://www.ee.cuhk.edu.hk/~xgwang/PS/dataset.html) and unpack all of it, or create synthetic "
    "data: python -m person_search.data.synthetic.",
)


def protocol_path(root: str | Path, name: str) -> Path:
    """Returns the file of a protocol, e.g. ``TestG100.mat`` for ``g100``."""
    if name in SUBSETS:
        return Path(root) / SUBSETS[name][0]
    if not re.fullmatch(r"g[1-9]\d*", name):
        raise ValueError(
            f"unknown CUHK-SYSU protocol {name!r}; allowed: 'g' and one of the gallery sizes "
            f"{list(GALLERY_SIZES)}, or one of {list(SUBSETS)}"
        )
    return Path(root) / PROTOCOL_FOLDER / f"TestG{name[1:]}.mat"


def existing_protocols(root: str | Path) -> list[str]:
    """Returns the protocols ``g<size>`` whose file exists, by ascending size."""
    found = (
        re.fullmatch(r"TestG([1-9]\d*)\.mat", path.name)
        for path in (Path(root) / PROTOCOL_FOLDER).glob("TestG*.mat")
    )
    return [f"g{size}" for size in sorted(int(match[1]) for match in found if match)]


def existing_subsets(root: str | Path) -> list[str]:
    """Returns the names of ``SUBSETS`` whose file exists."""
    return [name for name in SUBSETS if protocol_path(root, name).exists()]


def read_images_mat(path: Path) -> dict[str, np.ndarray]:
    """Reads ``Images.mat`` without a cache; see :func:`read_images` for the arrays."""
    names, box_image, boxes, hard = [], [], [], []
    rows = struct_rows(load_variable(path, ["Img"]), ["imname", "box"], str(path))
    for index, (imname, persons) in enumerate(rows):
        where = f"{path}: Img({index + 1})"
        names.append(text(imname))
        for located, is_hard in struct_rows(persons, ["idlocate", "ishard"], where):
            box = box_or_none(located, where)
            if box is not None:
                box_image.append(index)
                boxes.append(box)
                hard.append(bool(np.any(is_hard)))
    if len(set(names)) != len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"{path}: the image {twice!r} has two entries")
    return {
        "names": np.array(names, dtype=np.str_),
        "box_image": np.array(box_image, np.int32),
        "boxes": np.array(boxes, np.float64).reshape(-1, 4),
        "hard": np.array(hard, bool),
    }


def _read_train_mat(path: Path) -> dict[str, np.ndarray]:
    cells = load_variable(path, ["Train"]).reshape(-1)
    pids, names, boxes = [], [], []
    for pid, cell in enumerate(cells):
        where = f"{path}: Train{{{pid + 1}}}"
        for (scenes,) in struct_rows(cell, ["scene"], where):
            for imname, located in struct_rows(scenes, ["imname", "idlocate"], where):
                box = box_or_none(located, where)
                if box is not None:
                    pids.append(pid)
                    names.append(text(imname))
                    boxes.append(box)
    return {
        "pids": np.array(pids, np.int32),
        "names": np.array(names, dtype=np.str_),
        "boxes": np.array(boxes, np.float64).reshape(-1, 4),
        "num_pids": np.array(len(cells), np.int32),
    }


def read_images(root: Path) -> dict[str, np.ndarray]:
    """Returns names (N,), box_image (B,) index into them, boxes (B, 4), hard (B,)."""
    path = root / IMAGES_MAT
    return cached_arrays(root, "images", [path], lambda: read_images_mat(path))


def read_train_identities(root: Path) -> dict[str, np.ndarray]:
    """Returns pids (S,), names (S,), boxes (S, 4), and num_pids ()."""
    path = root / TRAIN_MAT
    return cached_arrays(root, "train_identities", [path], lambda: _read_train_mat(path))


def read_test_names(root: Path) -> list[str]:
    """Returns the sorted names of the test images; the position is the test ``image_id``."""
    path = root / POOL_MAT
    names = cell_strings(load_variable(path, ["pool"]))
    if len(set(names)) != len(names):
        raise ValueError(f"{path} lists some test images twice")
    return sorted(names)


def count_train_pids(root: str | Path) -> int:
    """Returns the number of training identities (5,532 in the real data set)."""
    CUHK_SYSU_LAYOUT.require(Path(root), [TRAIN_MAT])
    return int(read_train_identities(Path(root))["num_pids"])


def reference_protocol(root: str | Path) -> str:
    """Returns the protocol from which the test split takes its queries and matches.

    Every protocol has the same queries and, from about 50 gallery images on, all their matches. So
    it is the smallest one with at least 100 images (``g100`` is read anyway), else the largest.

    Raises:
        IncompleteDatasetError: If there is no ``TestG*.mat`` at all.
    """
    names = existing_protocols(root)
    if not names:
        raise CUHK_SYSU_LAYOUT.missing(Path(root), protocol_path(root, "g100"))
    return next((name for name in names if int(name[1:]) >= 100), names[-1])


def read_protocol_mat(path: Path, variable: str) -> dict[str, np.ndarray]:
    """Reads one ``TestG*.mat`` into arrays.

    Returns:
        names (M,); query_image (Q,) and gallery (Q, X) int32 indices into them (gallery padded
        with -1); query_boxes (Q, 4); positive_query (P,), positive_image (P,) and
        positive_boxes (P, 4).
    """
    logger.info(f"Converting {path} (once; about 3 s per 100 gallery images of a query)")
    index_of: dict[str, int] = {}
    query_image, query_boxes, galleries = [], [], []
    positive_query, positive_image, positive_boxes = [], [], []
    for entry, (query, gallery) in enumerate(stream_struct(path, variable, ["Query", "Gallery"])):
        where = f"{path}: {variable}({entry + 1})"
        ((imname, located),) = struct_rows(query, ["imname", "idlocate"], f"{where}.Query")
        box = box_or_none(located, f"{where}.Query")
        if box is None:
            raise ValueError(f"{where}.Query: the query has no box")
        query_image.append(index_of.setdefault(text(imname), len(index_of)))
        query_boxes.append(box)
        row = []
        for imname, located in struct_rows(gallery, ["imname", "idlocate"], f"{where}.Gallery"):
            image = index_of.setdefault(imname[0] if imname.size else "", len(index_of))
            row.append(image)
            if located.size:
                positive_query.append(entry)
                positive_image.append(image)
                positive_boxes.append(box_or_none(located, f"{where}.Gallery"))
        galleries.append(row)
    return {
        "names": np.array(list(index_of), dtype=np.str_),
        "query_image": np.array(query_image, np.int32),
        "query_boxes": np.array(query_boxes, np.float64).reshape(-1, 4),
        "gallery": pad_rows(galleries),
        "positive_query": np.array(positive_query, np.int32),
        "positive_image": np.array(positive_image, np.int32),
        "positive_boxes": np.array(positive_boxes, np.float64).reshape(-1, 4),
    }


def read_protocol(root: str | Path, name: str) -> dict[str, np.ndarray]:
    """Reads a protocol, from the cache if possible; see :func:`read_protocol_mat` for the arrays.

    Raises:
        IncompleteDatasetError: If the file of the protocol is missing.
    """
    root = Path(root)
    path = protocol_path(root, name)
    if not path.exists():
        raise CUHK_SYSU_LAYOUT.missing(root, path)
    variable = SUBSETS[name][1] if name in SUBSETS else f"TestG{name[1:]}"
    return cached_arrays(
        root, f"protocol_{name}", [path], lambda: read_protocol_mat(path, variable)
    )


def listed_boxes(arrays: dict[str, np.ndarray]) -> tuple[list[tuple], list[tuple]]:
    """Returns the queries and the positives of a protocol as (query index, (image name, box))."""
    names = arrays["names"].tolist()
    queries = [
        (query, (names[image], tuple(box)))
        for query, (image, box) in enumerate(
            zip(arrays["query_image"].tolist(), arrays["query_boxes"].tolist(), strict=True)
        )
    ]
    positives = [
        (query, (names[image], tuple(box)))
        for query, image, box in zip(
            arrays["positive_query"].tolist(),
            arrays["positive_image"].tolist(),
            arrays["positive_boxes"].tolist(),
            strict=True,
        )
    ]
    return queries, positives
