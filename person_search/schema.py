# SPDX-License-Identifier: Apache-2.0
"""Values, records and protocols that data sets, models and the evaluator agree on.

Shape shorthand: Q queries, X gallery and E excluded images of a query, G lists of excluded images,
P positives. Boxes are XYXY in pixels of the original image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

UNLABELED_PID = -1
"""``person_id`` / ``gt_pids`` of a person box of unknown identity."""

NO_QUERY_ID = -1
"""``query_ids`` entry of a ground truth box that is embedded but not a query; see the mapper."""

PERSON_CATEGORY_ID = 0
"""The only foreground class; background is ``num_classes`` (1), as in Detectron2."""

_XYXY_ABS = 0  # value of Detectron2's BoxMode.XYXY_ABS; this file does not import Detectron2


@dataclass(frozen=True)
class Query:
    """A person to search for: one box in one test image.

    Attributes:
        query_id: Unique id in the data set; also used in the record's ``queries``.
        image_id: Test image of the query box.
        box: (x1, y1, x2, y2).
        person_id: Identity, in the numbering of the test set.
        cam_id: Camera of the image, or None without cameras.
    """

    query_id: int
    image_id: int
    box: tuple[float, float, float, float]
    person_id: int
    cam_id: int | None = None


@dataclass
class SearchProtocol:
    """Images to search for each query, and where the person is in them.

    Attributes:
        name: Short name, for example ``g100`` or ``all``; becomes part of result keys.
        queries: Q queries.
        gallery: (Q, X) int32 ``image_id``s in listed order, padded with -1, duplicates kept; None
            searches every image of the data set except those in ``excluded``.
        positive_query: (P,) int32 index into ``queries``.
        positive_image: (P,) int32 ``image_id``, once for each time the gallery lists the image.
        positive_box: (P, 4) float32 box of the person in that image.
        excluded: (Q, E) int32 ``image_id``s padded with -1; used only if ``gallery`` is None.
            (G, E) if ``excluded_row`` is given.
        excluded_row: (Q,) row of ``excluded`` for each query, so that the queries of a camera can
            share a list; None: row q for query q.
    """

    name: str
    queries: Sequence[Query]
    gallery: np.ndarray | None
    positive_query: np.ndarray
    positive_image: np.ndarray
    positive_box: np.ndarray
    excluded: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    excluded_row: np.ndarray | None = None

    def excluded_images(self, query: int) -> np.ndarray:
        """Returns the (E,) ``image_id``s that a query must not search, without padding."""
        if not self.excluded.size:
            return np.zeros(0, np.int32)
        row = query if self.excluded_row is None else self.excluded_row[query]
        return self.excluded[row][self.excluded[row] >= 0]

    def of_query(self, query: int) -> "SearchProtocol":
        """Returns the protocol with a single query, that of the given index."""
        rows = np.flatnonzero(np.asarray(self.positive_query) == query)
        return replace(
            self,
            queries=[self.queries[query]],
            gallery=None if self.gallery is None else self.gallery[[query]],
            positive_query=np.zeros(len(rows), np.int32),
            positive_image=self.positive_image[rows],
            positive_box=self.positive_box[rows],
            excluded=self.excluded_images(query)[None],
            excluded_row=None,
        )


def record_problems(record: dict, is_test: bool, tolerance: float = 0.0) -> list[str]:
    """Checks a data set record against what mapper, models and evaluator rely on.

    Args:
        record: Record of a data set.
        is_test: Whether ``queries`` are required.
        tolerance: Pixels by which a box may exceed its image. CUHK-SYSU needs one, because its
            boxes are 1-based.

    Returns:
        One sentence per problem; empty for a valid record.
    """
    problems = []
    expected = {
        "file_name": str,
        "image_id": int,
        "height": int,
        "width": int,
        "cam_id": int | None,
        "annotations": list,
    }
    if is_test:
        expected["queries"] = list
    for key, kind in expected.items():
        if key not in record:
            problems.append(f"{key} is absent")
        elif not isinstance(record[key], kind):
            problems.append(f"{key} is {record[key]!r}, of the wrong type")
    if problems:
        return problems

    size = record["height"], record["width"]
    if min(size) <= 0:
        problems.append(f"the size {size} (height, width) is not positive")
    for index, annotation in enumerate(record["annotations"]):
        problems += _box_problems(f"annotation {index}", annotation, size, tolerance)
        if annotation.get("category_id") != PERSON_CATEGORY_ID:
            problems.append(f"annotation {index}: category_id is {annotation.get('category_id')}")
        person_id = annotation.get("person_id")
        if not isinstance(person_id, int) or person_id < UNLABELED_PID:
            problems.append(f"annotation {index}: person_id is {person_id!r}")
    for index, query in enumerate(record["queries"] if is_test else ()):
        problems += _box_problems(f"query {index}", query, size, tolerance)
        if not isinstance(query.get("query_id"), int):
            problems.append(f"query {index}: query_id is {query.get('query_id')!r}")
    return problems


def _box_problems(where: str, entry: dict, size: tuple[int, int], tolerance: float) -> list[str]:
    """Returns the problems of the box of an annotation or query."""
    box = entry.get("bbox")
    if entry.get("bbox_mode") != _XYXY_ABS or box is None or len(box) != 4:
        mode = entry.get("bbox_mode")
        return [f"{where}: four XYXY numbers expected, got {box} with the mode {mode}"]
    if not np.isfinite(box).all():
        return [f"{where}: the box {box} is not finite"]
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return [f"{where}: the box {box} has no area"]
    height, width = size
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return [f"{where}: the box {box} lies outside the image of {size}"]
    over = max(-x1, -y1, x2 - width, y2 - height)
    if over > tolerance:
        return [f"{where}: the box {box} reaches {over:g} pixels over the border of {size}"]
    return []
