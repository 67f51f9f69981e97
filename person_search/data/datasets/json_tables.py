# SPDX-License-Identifier: Apache-2.0
"""The arrays that an annotation file (COCO-style JSON) is turned into.

Shape shorthand: I images, B annotations, Q queries, X listed images, M matches.
Boxes are x, y, width, height in this file, with the numbers that stand in the JSON.
"""

from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np

LISTED = "listed"
"""Name of the protocol that ``galleries`` makes."""

RULE_PROTOCOLS = ("all", "multi_view")
"""Protocols that follow from the images alone, so no file may use these names."""

KEPT, CROWD, OTHER_CATEGORY, FAULTY = 0, 1, 2, 3
"""Values of ``AnnotationTables.left_out``."""

NO_CAMERA = np.iinfo(np.int64).min
"""Value of ``AnnotationTables.cam_ids`` where the file gives no camera."""


@dataclass(frozen=True, eq=False)
class GalleryTable:
    """One protocol of the file.

    Args:
        gallery: (Q, X) int32 image ids in listed order, padded with -1.
        takes_part: (Q,) bool, whether the query belongs to the protocol.
        match_query: (M,) int32 index of the query, or None: the rule decides.
        match_image: (M,) int32 image id.
        match_boxes: (M, 4).

    The three come together; :attr:`matches` has them all.
    """

    gallery: np.ndarray
    takes_part: np.ndarray
    match_query: np.ndarray | None = None
    match_image: np.ndarray | None = None
    match_boxes: np.ndarray | None = None

    @property
    def matches(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """``match_query``, ``match_image``, ``match_boxes``; None where the rule decides."""
        if self.match_query is None or self.match_image is None or self.match_boxes is None:
            return None
        return self.match_query, self.match_image, self.match_boxes


@dataclass(frozen=True, eq=False)
class AnnotationTables:
    """The content of an annotation file.

    Args:
        image_ids: (I,) int64.
        names: I file names, in the order of the file as all else.
        sizes: (I, 2) int64 height and width; 0 where the file does not tell.
        cam_ids: (I,) int64; ``has_camera`` tells where there is one.
        boxes: (B, 4) float64.
        box_image: (B,) int32 position of the image.
        labels: (B,) int32 identity 0..num_pids - 1 or ``UNLABELED_PID``.
        left_out: (B,) uint8: 0, or why the annotation is no person box.
        num_pids: number of identities.
        query_ids: (Q,) int64; None where the file has no ``queries``.
        query_image: (Q,) int32 position of the image.
        query_boxes: (Q, 4) float64.
        query_pids: (Q,) int32.
        galleries: name -> protocol.
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

    def pack(self) -> dict[str, np.ndarray]:
        """Returns plain arrays, e.g. for a ``.npz``; ``unpack`` takes them back."""
        arrays = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "names":
                arrays["names"] = np.frombuffer("\0".join(value).encode(), np.uint8)
            elif one.name != "galleries" and value is not None:
                arrays[one.name] = np.asarray(value)
        for place, (name, table) in enumerate(self.galleries.items()):
            for one in fields(table):
                value = getattr(table, one.name)
                if value is not None:
                    arrays[f"galleries.{place}.{name}.{one.name}"] = value
        return arrays

    @classmethod
    def unpack(cls, arrays: dict[str, np.ndarray]) -> "AnnotationTables":
        """Returns the tables that ``pack`` was called on."""
        values: dict = {}
        galleries: dict[tuple[int, str], dict] = {}
        for key, array in arrays.items():
            if key.startswith("galleries."):
                _, place, name, part = key.split(".")
                galleries.setdefault((int(place), name), {})[part] = array
            else:
                values[key] = array
        text = values["names"].tobytes().decode()
        values["names"] = text.split("\0") if text else []
        values["num_pids"] = int(values["num_pids"])
        ordered = {name: GalleryTable(**parts) for (_, name), parts in sorted(galleries.items())}
        return cls(**values, galleries=ordered)
