# SPDX-License-Identifier: Apache-2.0
"""Creates data set records from an annotation table."""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from detectron2.structures import BoxMode

from person_search.data.datasets.annotations import AnnotationTable
from person_search.schema import PERSON_CATEGORY_ID, Query


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disables the garbage collector, which doubles the time of creating millions of objects."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_garbage_collection()
def make_records(
    table: AnnotationTable,
    paths: Sequence[str | os.PathLike],
    sizes: np.ndarray,
    queries: Sequence[Query] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> list[dict]:
    """Creates one record per image; unusable annotations are omitted.

    Args:
        table: Images and annotations.
        paths: File of each image.
        sizes: (I, 2) height and width of each image.
        queries: Queries to add to the records; None creates records without ``queries``.
        extra: Further entries of the annotations: (B,) values by key.

    Returns:
        Records in the order of the images, see ``docs/data_flow.md``.
    """
    rows = np.flatnonzero(table.usable)
    order = rows[np.argsort(table.box_image[rows], kind="stable")]
    counts = np.bincount(table.box_image[order], minlength=len(paths))
    annotations = [
        {
            "bbox": box,
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": PERSON_CATEGORY_ID,
            "person_id": label,
        }
        for box, label in zip(
            table.boxes[order].tolist(), table.labels[order].tolist(), strict=True
        )
    ]
    for key, values in (extra or {}).items():
        for annotation, value in zip(annotations, values[order].tolist(), strict=True):
            annotation[key] = value
    image_ids, cams = table.image_ids.tolist(), table.cam_ids.tolist()
    has_camera = table.has_camera.tolist()
    records = []
    start = 0
    for row, (size, end) in enumerate(
        zip(np.asarray(sizes).tolist(), np.cumsum(counts).tolist(), strict=True)
    ):
        records.append(
            {
                "file_name": os.fspath(paths[row]),
                "image_id": image_ids[row],
                "height": size[0],
                "width": size[1],
                "cam_id": cams[row] if has_camera[row] else None,
                "annotations": annotations[start:end],
            }
        )
        start = end
    if queries is None:
        return records
    for record in records:
        record["queries"] = []
    for query in queries:
        records[table.row_of_image[query.image_id]]["queries"].append(
            {
                "query_id": query.query_id,
                "bbox": [float(value) for value in query.box],
                "bbox_mode": BoxMode.XYXY_ABS,
            }
        )
    return records
