# SPDX-License-Identifier: Apache-2.0
"""The annotation table: what every data set reader produces before records and protocols.

Shape shorthand: I images, B annotations, Q queries, X listed images, M matches.
Boxes are XYXY in pixels of the original image.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np

from person_search.data.datasets.common import IrregularityLog

LISTED = "listed"
"""Name of the protocol made from the ``galleries`` of an annotation file."""

RULE_PROTOCOLS = ("all", "multi_view")
"""Protocols that follow from the images alone; a file cannot use these names."""

KEPT, CROWD, OTHER_CATEGORY, FAULTY, BOX_OUTSIDE = 0, 1, 2, 3, 4
"""Values of ``AnnotationTable.left_out``."""

_LEFT_OUT_KINDS = {
    CROWD: "crowd",
    OTHER_CATEGORY: "other_category",
    BOX_OUTSIDE: "box_outside",
}

NO_CAMERA = np.iinfo(np.int64).min
"""Value of ``AnnotationTable.cam_ids`` for an image without a camera."""

BORDER_TOLERANCE = 1.0
"""Pixels by which a box may exceed the image unreported, because some data sets are 1-based."""


@dataclass(frozen=True, eq=False)
class GalleryTable:
    """A protocol with listed galleries.

    Attributes:
        gallery: (Q, X) int32 image ids in listed order, padded with -1.
        takes_part: (Q,) bool, whether the query belongs to the protocol.
        match_query: (M,) int32 index of the query; None if the matches follow from the identities.
        match_image: (M,) int32 image id, or None.
        match_boxes: (M, 4), or None.
    """

    gallery: np.ndarray
    takes_part: np.ndarray
    match_query: np.ndarray | None = None
    match_image: np.ndarray | None = None
    match_boxes: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """Images, person boxes and queries of a data set as arrays.

    Attributes:
        image_ids: (I,) int64.
        names: I file names.
        sizes: (I, 2) int64 height and width; 0 if unknown.
        cam_ids: (I,) int64 camera, or ``NO_CAMERA``.
        boxes: (B, 4) float64.
        box_image: (B,) int32 row of the image.
        labels: (B,) int32 identity 0..num_pids - 1, or ``UNLABELED_PID``.
        left_out: (B,) uint8 ``KEPT``, or why the annotation is not used.
        num_pids: Number of identities.
        query_ids: (Q,) int64; None if the queries follow from the identities.
        query_image: (Q,) int32 row of the image, or None.
        query_boxes: (Q, 4) float64, or None.
        query_pids: (Q,) int32, or None.
        galleries: Protocols with listed galleries, by name.
    """

    image_ids: np.ndarray
    names: list[str]
    sizes: np.ndarray
    cam_ids: np.ndarray
    boxes: np.ndarray
    box_image: np.ndarray
    labels: np.ndarray
    left_out: np.ndarray
    num_pids: int
    query_ids: np.ndarray | None = None
    query_image: np.ndarray | None = None
    query_boxes: np.ndarray | None = None
    query_pids: np.ndarray | None = None
    galleries: dict[str, GalleryTable] = field(default_factory=dict)

    @cached_property
    def has_camera(self) -> np.ndarray:
        """(I,) bool."""
        return self.cam_ids != NO_CAMERA

    @cached_property
    def usable(self) -> np.ndarray:
        """(B,) bool: annotations of single persons whose box has an area."""
        return (self.left_out == KEPT) & (self.boxes[:, 2:] > self.boxes[:, :2]).all(axis=1)

    @cached_property
    def labeled_rows(self) -> np.ndarray:
        """Usable annotations with an identity."""
        return np.flatnonzero(self.usable & (self.labels >= 0))

    @cached_property
    def row_of_image(self) -> dict[int, int]:
        """Row of each image id."""
        return {image_id: row for row, image_id in enumerate(self.image_ids.tolist())}

    def count_images(self) -> np.ndarray:
        """Returns (num_pids,): the number of images that show each person."""
        rows, num_images = self.labeled_rows, len(self.names)
        pairs = np.unique(self.labels[rows].astype(np.int64) * num_images + self.box_image[rows])
        return np.bincount(pairs // num_images, minlength=self.num_pids)

    def pack(self) -> dict[str, np.ndarray]:
        """Returns plain arrays, for example for an ``.npz`` file; ``unpack`` reverses this."""
        arrays = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "names":
                text = "\0".join(value).encode("utf-8", "surrogatepass")
                arrays["names"] = np.frombuffer(text, np.uint8)
            elif one.name != "galleries" and value is not None:
                arrays[one.name] = np.asarray(value)
        for place, (name, table) in enumerate(self.galleries.items()):
            for one in fields(table):
                value = getattr(table, one.name)
                if value is not None:
                    arrays[f"galleries.{place}.{name}.{one.name}"] = value
        return arrays

    @classmethod
    def unpack(cls, arrays: dict[str, np.ndarray]) -> "AnnotationTable":
        """Returns the table on which ``pack`` was called."""
        values: dict = {}
        galleries: dict[tuple[int, str], dict] = {}
        for key, array in arrays.items():
            if key.startswith("galleries."):
                _, place, name, part = key.split(".")
                galleries.setdefault((int(place), name), {})[part] = array
            else:
                values[key] = array
        text = values["names"].tobytes().decode("utf-8", "surrogatepass")
        values["names"] = text.split("\0") if text else []
        values["num_pids"] = int(values["num_pids"])
        ordered = {name: GalleryTable(**parts) for (_, name), parts in sorted(galleries.items())}
        return cls(**values, galleries=ordered)


def show_box(box: np.ndarray) -> str:
    """Returns an XYXY box as the text ``[x, y, width, height]``."""
    x1, y1, x2, y2 = (float(value) for value in box)
    return str([float(f"{value:.6g}") for value in (x1, y1, x2 - x1, y2 - y1)])


def overhang(boxes: np.ndarray, image: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns by how many pixels boxes exceed their images.

    Args:
        boxes: (N, 4) boxes.
        image: (N,) rows of their images.
        sizes: (I, 2) height and width; 0 if unknown.

    Returns:
        (N,) pixels; 0 in images of unknown size.
    """
    whole = sizes[image][:, ::-1]
    over = np.maximum((boxes[:, 2:] - whole).max(axis=1), -boxes[:, :2].min(axis=1))
    return np.where(whole[:, 0] > 0, over, 0.0)


def log_irregular_boxes(
    table: AnnotationTable,
    sizes: np.ndarray,
    log: IrregularityLog,
    place: Callable[[str, int, int | None], str],
    over_border: str = "box_over_border",
    tolerance: float = BORDER_TOLERANCE,
) -> None:
    """Logs unused and overhanging boxes, persons that an image shows twice, and empty images.

    Args:
        table: Annotations to inspect.
        sizes: (I, 2) height and width; 0 if unknown.
        log: Receives the irregularities.
        place: Returns the location to report for a kind of irregularity, a row of the images and a
            row of the annotations (None for an image without boxes).
        over_border: Kind of irregularity of an overhanging box.
        tolerance: Pixels of overhang that are not reported.
    """

    def add(kind: str, row: int, detail: str) -> None:
        log.add(kind, place(kind, int(table.box_image[row]), row), detail)

    def in_image(row: int) -> str:
        height, width = sizes[table.box_image[row]]
        image = f", image {width} x {height} (width x height)" if height else ""
        return f"{show_box(table.boxes[row])} [x, y, width, height]{image}"

    for row in np.flatnonzero(np.isin(table.left_out, list(_LEFT_OUT_KINDS))).tolist():
        add(_LEFT_OUT_KINDS[int(table.left_out[row])], row, in_image(row))
    for row in np.flatnonzero((table.left_out == KEPT) & ~table.usable).tolist():
        add("zero_size_box", row, in_image(row))
    over = overhang(table.boxes, table.box_image, sizes) > tolerance
    for row in np.flatnonzero(table.usable & over).tolist():
        add(over_border, row, in_image(row))
    rows = table.labeled_rows
    keys = table.box_image[rows].astype(np.int64) * max(table.num_pids, 1) + table.labels[rows]
    _, first = np.unique(keys, return_index=True)
    for row in np.delete(rows, first).tolist():
        add("twice_in_image", row, f"identity {table.labels[row]}")
    counts = np.bincount(table.box_image[table.usable], minlength=len(table.names))
    for image in np.flatnonzero(counts == 0).tolist():
        log.add("no_boxes", place("no_boxes", image, None), "no box with an area")
