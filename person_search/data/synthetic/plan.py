# SPDX-License-Identifier: Apache-2.0
"""Decides before anything is drawn who appears in which image."""

from dataclasses import dataclass

import numpy as np

from .config import SyntheticConfig
from .looks import Look, alter_look, look_distance, sample_look, sample_looks

TWINS_PER_TEST_SET = 2
"""Test identities that stand twice in one image when quirks are on (and ids suffice)."""


@dataclass(frozen=True)
class Cast:
    """Identities of one split.

    ``alike[i]`` is the index of the identity that identity i copies but for one or two
    attributes, or None.
    """

    looks: list[Look]
    alike: list[int | None]


@dataclass
class ImagePlan:
    """One image: its camera and everyone in it, as (identity index or -1, look)."""

    camera: int
    people: list[tuple[int, Look]]


def generator(cfg: SyntheticConfig, *key: int) -> np.random.Generator:
    """An independent random stream for one purpose."""
    sequence = np.random.SeedSequence(cfg.seed, spawn_key=key)
    return np.random.Generator(np.random.PCG64(sequence))


def make_casts(cfg: SyntheticConfig, stream: int) -> tuple[Cast, Cast]:
    """Looks of the training and of the test identities; no test look is a training look."""
    rng = generator(cfg, stream, 2_000_000)
    train = Cast(*sample_looks(rng, cfg.train_ids, cfg.alike_share))
    test = Cast(*sample_looks(rng, cfg.test_ids, cfg.alike_share, tuple(train.looks)))
    return train, test


def plan_split(
    cfg: SyntheticConfig, rng: np.random.Generator, cast: Cast, cameras: list[int], twins: int
) -> list[ImagePlan]:
    """Deals the identities of a split into its images.

    Every identity gets at least two images and, where there are several cameras, two cameras.

    Args:
        cfg: counts and shares.
        rng: stream of this split.
        cast: the split's identities.
        cameras: camera of each image.
        twins: number of images in which one identity stands twice.

    Returns:
        One plan per image. With quirks, one image has passers-by only.

    Raises:
        ValueError: the people of all images do not suffice for two appearances per identity.
    """
    count = len(cameras)
    low, high = cfg.people
    totals = rng.integers(low, high + 1, size=count)
    labeled = np.maximum(1, rng.binomial(totals, cfg.labeled_share))
    labeled = np.minimum(labeled, len(cast.looks))
    empty = int(rng.integers(count)) if cfg.quirks else -1
    if empty >= 0:
        labeled[empty] = 0
    labeled = _raise_to(labeled, totals, 2 * len(cast.looks), empty, len(cast.looks))
    dealt = _deal(rng, labeled, cameras, len(cast.looks))
    crowd = [i for i in range(count) if totals[i] - len(dealt[i]) > 0 and dealt[i]]
    doubled: set[int] = set()
    for picture in rng.permutation(crowd):
        fresh = [pid for pid in dealt[picture] if pid not in doubled]
        if len(doubled) < twins and fresh:
            doubled.add(fresh[0])
            dealt[picture].append(fresh[0])
    plans = []
    for picture in range(count):
        people = [(pid, cast.looks[pid]) for pid in dealt[picture]]
        for _ in range(int(totals[picture]) - len(people)):
            people.append((-1, _passer_by(rng, cfg, cast)))
        plans.append(ImagePlan(cameras[picture], people))
    return plans


def _raise_to(
    labeled: np.ndarray, totals: np.ndarray, least: int, empty: int, most: int
) -> np.ndarray:
    """Raises the labeled counts, evenly, until their sum reaches ``least``."""
    labeled = labeled.copy()
    room = np.minimum(totals, most)
    while labeled.sum() < least:
        open_images = [i for i in range(len(labeled)) if i != empty and labeled[i] < room[i]]
        if not open_images:
            raise ValueError(
                f"{least // 2} identities need two appearances each, {least} in all, but the "
                f"{len(labeled)} images hold {int(labeled.sum())} labeled people at most. "
                "Lower train_ids/test_ids, or raise train_images/test_images or people."
            )
        for i in open_images:
            if labeled.sum() < least:
                labeled[i] += 1
    return labeled


def _deal(
    rng: np.random.Generator, labeled: np.ndarray, cameras: list[int], ids: int
) -> list[list[int]]:
    """Identity indices of each image; the first two rounds hold everybody, in two cameras."""
    several = len(set(cameras)) > 1
    for _ in range(200):
        frequency = rng.uniform(0.4, 1.0, size=ids)
        seen: list[list[int]] = [[] for _ in range(ids)]  # cameras
        dealt: list[list[int]] = [[] for _ in labeled]
        deck: list[int] = []
        rounds = 0
        for picture in rng.permutation(len(labeled)):
            camera = cameras[picture]
            while len(dealt[picture]) < labeled[picture]:
                options = [pid for pid in deck if pid not in dealt[picture]]
                if not options:
                    fresh = rng.permutation(ids)
                    if rounds >= 2:
                        fresh = fresh[rng.random(ids) < frequency[fresh]]
                    deck += [int(pid) for pid in fresh]
                    rounds += 1
                    continue
                pid = next(
                    (p for p in options if not several or set(seen[p]) != {camera}), options[0]
                )
                deck.remove(pid)
                dealt[picture].append(pid)
                seen[pid].append(camera)
        twice = min(map(len, seen)) >= 2
        if twice and (not several or all(len(set(cams)) >= 2 for cams in seen)):
            return dealt
    raise ValueError(
        f"found no way to show each of {ids} identities in two images"
        + (" of two cameras" if several else "")
        + "; raise train_images/test_images or people, or lower train_ids/test_ids"
    )


def _passer_by(rng: np.random.Generator, cfg: SyntheticConfig, cast: Cast) -> Look:
    """A stranger; some of them resemble an identity of the split, none equals one."""
    if rng.random() < cfg.alike_share:
        look = cast.looks[int(rng.integers(len(cast.looks)))]
        stranger = alter_look(rng, look, 2)
    else:
        stranger = sample_look(rng)
    for _ in range(20):
        if min(look_distance(stranger, look) for look in cast.looks) >= 2:
            break
        stranger = sample_look(rng)
    return stranger
