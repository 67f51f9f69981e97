# SPDX-License-Identifier: Apache-2.0
"""The words that data sets, models and evaluator share: key names, values and the protocol type.

Shape shorthand: Q queries, X gallery images of one query, P positives, E excluded images of one query.
Boxes are absolute XYXY pixels of the original image everywhere in this file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

UNLABELED_PID = -1
"""``person_id`` / ``gt_pids`` of a person box whose identity is not known."""

PERSON_CATEGORY_ID = 0
"""The only foreground class; background is ``num_classes`` (1), as Detectron2 has it."""


@dataclass(frozen=True)
class Query:
    """A person to be searched for: one box in one test image.

    Args:
        query_id: unique in the data set; also the number in the record's ``queries``.
        image_id: the test image that holds the query box.
        box: (x1, y1, x2, y2), pixels of the original image.
        person_id: identity in the name space of the test set.
        cam_id: camera of the image, or None where the data set has no cameras.
    """

    query_id: int
    image_id: int
    box: tuple[float, float, float, float]
    person_id: int
    cam_id: int | None = None


@dataclass
class SearchProtocol:
    """For each query: the images to be searched, and where the person is in them.

    Args:
        name: short name, e.g. ``g100`` or ``all``; becomes part of the result key.
        queries: Q queries.
        gallery: (Q, X) int32 ``image_id``s in listed order, padded with -1, duplicates kept as listed;
            or None: every image of the data set except those in ``excluded``.
        positive_query: (P,) int32 index into ``queries``.
        positive_image: (P,) int32 ``image_id``. An image that a gallery lists twice stands here twice.
        positive_box: (P, 4) float32, the person's box in that image.
        excluded: (Q, E) int32 ``image_id``s padded with -1; only read where ``gallery`` is None.
    """

    name: str
    queries: Sequence[Query]
    gallery: np.ndarray | None
    positive_query: np.ndarray
    positive_image: np.ndarray
    positive_box: np.ndarray
    excluded: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int32))
