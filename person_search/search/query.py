# SPDX-License-Identifier: Apache-2.0
"""Whom to search for: the person in a box, at a point, or the best one of an image.

Shape shorthand: Q images of the same person, D length of an embedding.
Boxes and points are pixels of the image as people see it (EXIF orientation applied).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from person_search.search.embedder import PersonEmbedder
from person_search.search.images import clip_box, read_image
from person_search.search.videos import read_frame


@dataclass(frozen=True)
class QueryPerson:
    """One image of the person who is searched for.

    Args:
        path: the image. box: the person in it, XYXY.
        reid_feat: (D,) of unit length.
        score: of the detection, None for a box that somebody has drawn.
        frame: index of the frame if ``path`` is a video.
        name: what people call the image; "" for the name of its file.
    """

    path: str
    box: tuple[float, float, float, float]
    reid_feat: np.ndarray
    score: float | None = None
    frame: int | None = None
    name: str = ""

    @property
    def shown_name(self) -> str:
        """What to call the image where people read it."""
        return self.name or Path(self.path).name

    def read(self) -> np.ndarray:
        """The image or frame as (H, W, 3) uint8 RGB."""
        return read_image(self.path) if self.frame is None else read_frame(self.path, self.frame)

    def to_json(self) -> dict:
        """Plain types, without the embedding."""
        known = {
            "frame": self.frame,
            "score": None if self.score is None else round(self.score, 4),
        }
        return {
            "image": self.name or self.path,
            "box": [round(v, 1) for v in self.box],
            **{key: value for key, value in known.items() if value is not None},
        }


def person_in_box(
    embedder: PersonEmbedder, path: str | os.PathLike, box: Sequence[float]
) -> QueryPerson:
    """The person in a box that somebody has drawn; the part outside the image is cut off.

    Raises:
        FileNotFoundError, BadImageError: the image is absent or unreadable.
        ValueError: the box has no area, or lies outside the image.
    """
    picture = read_image(path, embedder.image_format)
    clipped = clip_box(box, picture.shape[1], picture.shape[0], path)
    (feat,) = embedder.embed_in(picture, [clipped])
    return QueryPerson(os.fspath(path), _as_box(clipped), feat)


def detected_person(
    embedder: PersonEmbedder,
    path: str | os.PathLike,
    point: tuple[float, float] | None = None,
) -> QueryPerson:
    """The person that is detected with the highest score, or the one at a point.

    Args:
        embedder: detects, with its own threshold.
        path: the image.
        point: (x, y); of several persons there, the one with the smallest box. None: the best one.

    Raises:
        FileNotFoundError, BadImageError: the image is absent or unreadable.
        ValueError: nobody is detected, or nobody at the point; those who are, are listed.
    """
    picture = read_image(path, embedder.image_format)
    height, width = picture.shape[:2]
    if point is not None and not (0 <= point[0] < width and 0 <= point[1] < height):
        raise ValueError(
            f"the point {point[0]:g} {point[1]:g} lies outside the image '{path}', which is "
            f"{width} x {height} pixels (width x height)."
        )
    found = embedder.detect(picture)
    boxes, scores = found.pred_boxes.tensor.numpy(), found.scores.numpy()
    if not len(boxes):
        raise ValueError(
            f"nobody was detected in '{path}' with a score of at least {embedder.score_thresh:g}; "
            "give the person's box, or lower TEST.PERSON_SEARCH.SCORE_THRESH."
        )
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    if point is None:
        row = int(np.lexsort((-areas, -scores))[0])
    else:
        x, y = point
        inside = (boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])
        if not inside.any():
            listed = "; ".join(" ".join(f"{v:.0f}" for v in box) for box in boxes[:5])
            raise ValueError(
                f"nobody was detected at {x:g} {y:g} in '{path}'. Detected (x1 y1 x2 y2): {listed}."
            )
        row = int(np.where(inside, areas, np.inf).argmin())
    return QueryPerson(
        os.fspath(path), _as_box(boxes[row]), found.reid_feats[row].numpy(), float(scores[row])
    )


def fuse(reid_feats: Sequence[np.ndarray]) -> np.ndarray:
    """One embedding (D,) for several images of a person: the mean of the unit vectors, of unit
    length again. Of all unit vectors it has the largest mean similarity to them.

    Raises:
        ValueError: none are given, or they cancel each other out.
    """
    if not len(reid_feats):
        raise ValueError("there is no query.")
    feats = np.asarray(reid_feats, np.float64)
    mean = (feats / np.linalg.norm(feats, axis=1, keepdims=True)).mean(axis=0)
    length = np.linalg.norm(mean)
    if not length > 1e-6:
        raise ValueError("the images of the query contradict each other: their mean is zero.")
    return (mean / length).astype(np.float32)


def _as_box(values: Sequence[float] | np.ndarray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = map(float, values)
    return x1, y1, x2, y2
