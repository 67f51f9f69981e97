# SPDX-License-Identifier: Apache-2.0
"""Decides which persons appear in which image, before anything is drawn."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from person_search.synthetic_config import SyntheticConfig, random_stream

from .looks import Look, alter_look, look_distance, sample_look, sample_looks

TWINS_PER_TEST_SET = 2
"""Test identities that appear twice in one image if quirks are on and ids suffice."""


@dataclass(frozen=True)
class Cast:
    """Identities of one split.

    Attributes:
        looks: Look of each identity.
        alike: Index of the identity that each identity copies but for one or two attributes, or
            None.
    """

    looks: list[Look]
    alike: list[int | None]


@dataclass
class ImagePlan:
    """One image: its camera and all persons in it, as (identity index or -1, look)."""

    camera: int
    people: list[tuple[int, Look]]


def make_casts(cfg: SyntheticConfig, stream: int) -> tuple[Cast, Cast]:
    """Samples the training and the test identities; no look is in both."""
    rng = random_stream(cfg.seed, stream, 2_000_000)
    train = Cast(*sample_looks(rng, cfg.train_ids, cfg.alike_share))
    test = Cast(*sample_looks(rng, cfg.test_ids, cfg.alike_share, tuple(train.looks)))
    return train, test


def plan_split(
    cfg: SyntheticConfig, rng: np.random.Generator, cast: Cast, cameras: list[int], twins: int
) -> list[ImagePlan]:
    """Distributes the identities of a split over its images.

    Every identity gets at least two images and, if there are several cameras, two cameras.

    Args:
        cfg: Counts and shares.
        rng: Random stream of this split.
        cast: Identities of the split.
        cameras: Camera of each image.
        twins: Number of images in which one identity appears twice.

    Returns:
        One plan per image. With quirks, one image has passers-by only.

    Raises:
        ValueError: If there are too few persons in all images for two appearances per identity.
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
    for image in rng.permutation(crowd):
        fresh = [pid for pid in dealt[image] if pid not in doubled]
        if len(doubled) < twins and fresh:
            doubled.add(fresh[0])
            dealt[image].append(fresh[0])
    plans = []
    for camera, pids, total in zip(cameras, dealt, totals, strict=True):
        people = [(pid, cast.looks[pid]) for pid in pids]
        people += [(-1, _passer_by(rng, cfg, cast)) for _ in range(int(total) - len(pids))]
        plans.append(ImagePlan(camera, people))
    return plans


def _raise_to(
    labeled: np.ndarray, totals: np.ndarray, least: int, empty: int, most: int
) -> np.ndarray:
    """Raises the labeled counts evenly until their sum reaches ``least``."""
    labeled = labeled.copy()
    room = np.minimum(totals, most)
    while labeled.sum() < least:
        open_images = [i for i in range(len(labeled)) if i != empty and labeled[i] < room[i]]
        if not open_images:
            raise ValueError(
                f"{least // 2} identities need two appearances each, {least} in all, but the "
                f"{len(labeled)} images hold at most {int(labeled.sum())} labeled persons. "
                "Lower train_ids/test_ids, or raise train_images/test_images or people."
            )
        for i in open_images:
            if labeled.sum() < least:
                labeled[i] += 1
    return labeled


def _deal(
    rng: np.random.Generator, labeled: np.ndarray, cameras: list[int], ids: int
) -> list[list[int]]:
    """Returns the identity indices of each image; the first two rounds use every identity."""
    several = len(set(cameras)) > 1
    for _ in range(200):
        frequency = rng.uniform(0.4, 1.0, size=ids)
        seen: list[list[int]] = [[] for _ in range(ids)]  # cameras
        dealt: list[list[int]] = [[] for _ in labeled]
        deck: list[int] = []
        rounds = 0
        for image in rng.permutation(len(labeled)):
            camera = cameras[image]
            while len(dealt[image]) < labeled[image]:
                options = [pid for pid in deck if pid not in dealt[image]]
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
                dealt[image].append(pid)
                seen[pid].append(camera)
        twice = min(map(len, seen)) >= 2
        if twice and (not several or all(len(set(cams)) >= 2 for cams in seen)):
            return dealt
    raise ValueError(
        f"cannot show each of the {ids} identities in two images"
        + (" of two cameras" if several else "")
        + "; raise train_images/test_images or people, or lower train_ids/test_ids"
    )


def _passer_by(rng: np.random.Generator, cfg: SyntheticConfig, cast: Cast) -> Look:
    """Samples the look of a passer-by; some resemble an identity of the split, none equals it."""
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


def write_attributes(folder: Path, casts: tuple[Cast, Cast], names: list[list[str]]) -> None:
    """Writes attributes.json: caption and attributes of each identity, under its name."""
    content = {}
    for split, cast, ids in zip(("train", "test"), casts, names, strict=True):
        content[split] = {
            name: {"caption": look.describe(), **dataclasses.asdict(look)}
            | {"look_alike_of": None if alike is None else ids[alike]}
            for name, look, alike in zip(ids, cast.looks, cast.alike, strict=True)
        }
    (folder / "attributes.json").write_text(json.dumps(content, indent=1) + "\n")
