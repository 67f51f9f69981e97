# SPDX-License-Identifier: Apache-2.0
"""Heights and widths of thousands of images: read from the file headers once, then remembered."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from person_search.data.datasets.cache import read_cache, write_cache
from person_search.data.datasets.common import DatasetLayout, IrregularityLog
from person_search.data.image_io import READ_ERRORS

logger = logging.getLogger(__name__)

_EXIF_ORIENTATION = 0x0112
_KEY = "sizes"  # entries are checked one by one, so the file as a whole never goes stale


def header_size(path: str | Path) -> tuple[int, int]:
    """Returns (height, width) of an image without decoding it; (0, 0) if its header is damaged.

    A camera's "turn by 90 degrees" mark swaps the two, as it does in Detectron2's image reader.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = "exif" in image.info and image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    except FileNotFoundError:
        raise
    except READ_ERRORS:
        return 0, 0
    return (width, height) if turned else (height, width)


def image_sizes(
    root: Path,
    cache_name: str,
    paths: Sequence[Path],
    layout: DatasetLayout,
    irregularities: IrregularityLog,
) -> np.ndarray:
    """Returns (N, 2) int32 height and width of the images at ``paths``.

    Only files that are new or changed since the last call are opened. A damaged header gives
    (0, 0) and an irregularity, so that reading the data set does not depend on every image.

    Raises:
        IncompleteDatasetError: naming the first image that is not there.
    """
    stamps = np.zeros((len(paths), 2), np.int64)
    absent = []
    for row, path in enumerate(paths):
        try:
            stat = os.stat(path)
            stamps[row] = stat.st_size, stat.st_mtime_ns
        except FileNotFoundError:
            absent.append(path)
    if absent:
        raise layout.missing(root, absent[0], len(absent) - 1)

    below = str(root) + os.sep  # images in several folders may have the same name
    names = np.array([str(path).removeprefix(below) for path in paths], dtype=np.str_)
    sizes = np.full((len(paths), 2), -1, np.int32)
    known = read_cache(root, cache_name, _KEY)
    if known is not None:
        rows = {name: row for row, name in enumerate(known["names"].tolist())}
        for row, name in enumerate(names.tolist()):
            old = rows.get(name)
            if old is not None and np.array_equal(known["stamps"][old], stamps[row]):
                sizes[row] = known["sizes"][old]

    todo = np.flatnonzero(sizes[:, 0] < 0).tolist()
    if todo:
        if len(todo) > 1000:
            logger.info(f"Reading the sizes of {len(todo)} images in {paths[0].parent} (once)")
        with ThreadPoolExecutor(8) as pool:
            sizes[todo] = list(pool.map(header_size, [paths[row] for row in todo]))
        write_cache(root, cache_name, _KEY, {"names": names, "stamps": stamps, "sizes": sizes})
    for row in np.flatnonzero(sizes[:, 0] == 0).tolist():
        irregularities.add("unreadable_image", str(paths[row]), "not a readable image")
    return sizes
