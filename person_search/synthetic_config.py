# SPDX-License-Identifier: Apache-2.0
"""Options of the synthetic person search data."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

import numpy as np

GENERATOR_VERSION = 2
"""Increased whenever the same options would give other bytes; part of the fingerprint."""

DIFFICULTY_NAMES = {"easy": 0.1, "medium": 0.4, "hard": 0.8}

_MIN_SIZE = 64
"""Smallest image side in pixels at which a person still has a shape."""


@dataclass(frozen=True)
class SyntheticConfig:
    """Options of a data set. Equal options give equal bytes with equal library versions.

    Attributes:
        seed: Root of all random streams.
        difficulty: 0 (clean) to 1; scales look-alikes, lighting, noise, occlusion and distance.
        width: Image width in pixels.
        height: Image height in pixels.
        train_images: Number of training images.
        test_images: Number of test images, which form the gallery pool.
        train_ids: Number of labeled training identities.
        test_ids: Number of test identities, none of them in training; each has a query.
        people: Minimum and maximum number of persons per image.
        labeled_share: Share of the persons with a labeled identity; the others are passers-by,
            annotated with a box but without an identity.
        gallery_sizes: CUHK-SYSU protocols to write (``TestG<X>``); sizes above
            ``test_images - 1`` are omitted.
        cameras: Number of places in the CUHK-SYSU set; PRW always has six cameras.
        look_alike_share: Share of the identities that copy another one but for one or two
            attributes; None derives it from ``difficulty``.
        quirks: Adds the known irregularities of the real files.
        jpeg_quality: JPEG quality, 1 to 100.
    """

    seed: int = 0
    difficulty: float = 0.3
    width: int = 320
    height: int = 240
    train_images: int = 400
    test_images: int = 200
    train_ids: int = 100
    test_ids: int = 60
    people: tuple[int, int] = (3, 8)
    labeled_share: float = 0.75
    gallery_sizes: tuple[int, ...] = (50, 100)
    cameras: int = 10
    look_alike_share: float | None = None
    quirks: bool = True
    jpeg_quality: int = 92

    def __post_init__(self) -> None:
        self._check("difficulty", 0 <= self.difficulty <= 1, "between 0 and 1")
        self._check("width", self.width >= _MIN_SIZE, f"at least {_MIN_SIZE}")
        self._check("height", self.height >= _MIN_SIZE, f"at least {_MIN_SIZE}")
        for name in ("train_images", "test_images"):
            self._check(name, getattr(self, name) >= 4, "at least 4")
        for name in ("train_ids", "test_ids"):
            self._check(name, getattr(self, name) >= 2, "at least 2")
        ordered = len(self.people) == 2 and 1 <= self.people[0] <= self.people[1]
        self._check("people", ordered, "(fewest, most) with 1 <= fewest <= most")
        self._check("labeled_share", 0 < self.labeled_share <= 1, "above 0, at most 1")
        self._check("gallery_sizes", all(size >= 2 for size in self.gallery_sizes), "at least 2")
        self._check("cameras", self.cameras >= 1, "at least 1")
        if self.look_alike_share is not None:
            self._check("look_alike_share", 0 <= self.look_alike_share <= 1, "between 0 and 1")
        self._check("jpeg_quality", 1 <= self.jpeg_quality <= 100, "between 1 and 100")

    def _check(self, name: str, good: bool, allowed: str) -> None:
        if not good:
            raise ValueError(
                f"SyntheticConfig.{name} is {getattr(self, name)!r}; it must be {allowed}"
            )

    @property
    def alike_share(self) -> float:
        """Share of the identities that are look-alikes, with the default filled in."""
        if self.look_alike_share is not None:
            return self.look_alike_share
        return 0.6 * self.difficulty

    def usable_gallery_sizes(self) -> list[int]:
        """Returns the gallery sizes that the test images can fill, in ascending order."""
        return sorted({size for size in self.gallery_sizes if size <= self.test_images - 1})

    def fingerprint(self, layout: str) -> str:
        """Returns a hash of all options, the generator's version and the name of the layout."""
        options = dataclasses.asdict(self) | {"version": GENERATOR_VERSION, "layout": layout}
        return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """Returns an independent random stream for one purpose, identified by ``key``."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
