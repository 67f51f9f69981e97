# SPDX-License-Identifier: Apache-2.0
"""Reads the sizes of many images from the file headers and caches them."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from person_search.data.datasets.cache import read_cache, write_cache
from person_search.data.datasets.common import DatasetLayout, IrregularityLog
from person_search.data.image_io import look_at_image

logger = logging.getLogger(__name__)

_KEY = "sizes"  # entries are validated one by one, so the file as a whole never expires


def image_sizes(
    root: Path,
    cache_name: str,
    paths: Sequence[Path],
    layout: DatasetLayout,
    irregularities: IrregularityLog,
) -> np.ndarray:
    """Returns the upright sizes of images. Opens only files that are new or have changed.

    Args:
        root: Folder of the data set.
        cache_name: Name of the cache file.
        paths: N image files.
        layout: Layout of the data set, for the error about a missing image.
        irregularities: Receives the unreadable images, whose size is (0, 0).

    Returns:
        (N, 2) int32 height and width.

    Raises:
        IncompleteDatasetError: If an image does not exist.
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

    below = str(root) + os.sep  # images of different folders may have the same name
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
            states = list(pool.map(look_at_image, [paths[row] for row in todo]))
        sizes[todo] = [state.size for state in states]
        write_cache(root, cache_name, _KEY, {"names": names, "stamps": stamps, "sizes": sizes})
    for row in np.flatnonzero(sizes[:, 0] == 0).tolist():
        irregularities.add("unreadable_image", str(paths[row]), "not a readable image")
    return sizes
