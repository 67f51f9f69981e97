# SPDX-License-Identifier: Apache-2.0
"""A gallery: all persons found in a set of pictures, with their embeddings, in memory.

Shape shorthand in this file: N persons of all pictures, D length of an embedding.
Boxes are XYXY pixels of the pictures as they are on disk.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def list_pictures(folder: str | os.PathLike) -> list[Path]:
    """All pictures of a folder, sorted by name; not those of folders within.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"the gallery '{folder}' is no folder.")
    files = (path for path in folder.iterdir() if path.is_file())
    pictures = sorted(path for path in files if path.suffix.lower() in PICTURE_SUFFIXES)
    if not pictures:
        raise FileNotFoundError(
            f"the gallery '{folder}' holds no picture (looked for {', '.join(PICTURE_SUFFIXES)})."
        )
    return pictures


@dataclass(frozen=True)
class Match:
    """One person found: where, how sure the detector is, and how similar to the query.

    Args:
        rank: 1 is best.
        path: the picture.
        box: XYXY pixels.
        score: of the detection, in [0, 1].
        sim: cosine similarity in [-1, 1].
    """

    rank: int
    path: str
    box: tuple[float, float, float, float]
    score: float
    sim: float

    def to_json(self) -> dict:
        """Plain types, boxes to a tenth of a pixel."""
        return {
            "rank": self.rank,
            "image": self.path,
            "box": [round(v, 1) for v in self.box],
            "score": round(self.score, 4),
            "similarity": round(self.sim, 4),
        }


@dataclass(frozen=True)
class Gallery:
    """Persons of a set of pictures.

    Args:
        paths: the pictures that could be read.
        image_index: (N,) picture of each person.
        boxes: (N, 4).
        scores: (N,).
        reid_feats: (N, D) of unit length.
        left_out: the pictures that could not be read, and why.
    """

    paths: Sequence[str]
    image_index: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    reid_feats: np.ndarray
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.boxes)

    def search(
        self,
        query_feat: np.ndarray,
        top: int | None = None,
        *,
        skip: str | None = None,
        per_image: bool = True,
    ) -> list[Match]:
        """The most similar persons, best first; equal ones in order of the pictures.

        Args:
            query_feat: (D,) of unit length.
            top: how many at most; None for all.
            skip: a picture to be left out, e.g. the query's own.
            per_image: name each picture once, with its most similar person.
        """
        if not len(self):
            return []
        sim = self.reid_feats @ np.asarray(query_feat, np.float32)
        matches: list[Match] = []
        seen: set[int] = set()
        for row in np.argsort(-sim, kind="stable"):
            if top is not None and len(matches) >= top:
                break
            image = int(self.image_index[row])
            if (per_image and image in seen) or self.paths[image] == skip:
                continue
            seen.add(image)
            matches.append(
                Match(
                    rank=len(matches) + 1,
                    path=self.paths[image],
                    box=tuple(float(v) for v in self.boxes[row]),
                    score=float(self.scores[row]),
                    sim=float(sim[row]),
                )
            )
        return matches
