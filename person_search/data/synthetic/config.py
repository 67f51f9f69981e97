# SPDX-License-Identifier: Apache-2.0
"""Options of the synthetic person search data."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

GENERATOR_VERSION = 2
"""Goes up whenever the same options would give other bytes; part of the manifest's hash."""

DIFFICULTY_NAMES = {"easy": 0.1, "medium": 0.4, "hard": 0.8}

_MIN_SIZE = 64
"""Smallest image side in pixels at which a person still has a shape."""


@dataclass(frozen=True)
class SyntheticConfig:
    """What to draw. Equal options give equal bytes on equal library versions.

    Args:
        seed: root of all random streams.
        difficulty: 0 (clean) to 1; scales look-alikes, lighting, noise, occlusion and distance.
        width: image width in pixels.
        height: image height in pixels.
        train_images: number of training images.
        test_images: number of test images; the gallery pool.
        train_ids: number of labeled training identities.
        test_ids: number of test identities, none of them in training; each has a query.
        people: fewest and most people per image.
        labeled_share: share of the people who belong to a labeled identity; the rest are
            passers-by, boxed without identity.
        gallery_sizes: CUHK-SYSU protocols to write (``TestG<X>``); those above
            ``test_images - 1`` are left out.
        cameras: number of places in the CUHK-SYSU set; PRW always has six.
        look_alike_share: share of the identities that copy another one but for one or two
            attributes; None derives it from ``difficulty``.
        quirks: put the known irregularities of the real files in on purpose.
        jpeg_quality: 1 to 100.
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
            self._check(name, getattr(self, name) >= 2, "at least 2 (peers squeeze one away)")
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
        """Share of identities that are look-alikes, after the rule for None."""
        if self.look_alike_share is not None:
            return self.look_alike_share
        return 0.6 * self.difficulty

    def usable_gallery_sizes(self) -> list[int]:
        """The sizes of ``gallery_sizes`` that the pool of test images can fill, ascending."""
        return sorted({size for size in self.gallery_sizes if size <= self.test_images - 1})

    def fingerprint(self, layout: str) -> str:
        """Hash of all options, the generator's version and the on-disk layout's name."""
        options = dataclasses.asdict(self) | {"version": GENERATOR_VERSION, "layout": layout}
        return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
