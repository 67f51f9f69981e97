# SPDX-License-Identifier: Apache-2.0
"""Copies of damaged galleries, and of changed videos; see test_milvus_store.py, too."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from galleries import IDENTITY, entry, unit_vectors, write_gallery
from milvus_galleries import KINDS, location_of

from person_search.search import GalleryStore, verify
from person_search.search.copying import copy
from person_search.search.entries import END_OF_VIDEO
from person_search.search.errors import GalleryDamagedError
from person_search.search.segment import VECTORS

DIM = 8


@pytest.mark.parametrize("kind", KINDS[:2])
def test_damage_is_not_copied(kind, request, tmp_path: Path) -> None:
    """What precedes it is, and the target is intact."""
    source, _ = write_gallery(tmp_path / "g", [2, 0, 2, 1], DIM)
    for i in range(4):
        (tmp_path / "images" / f"p{i}.png").write_bytes(b"x")
        os.utime(tmp_path / "images" / f"p{i}.png", ns=(1, 1))
    file = tmp_path / "g" / "segments" / "0001" / VECTORS
    vectors = np.fromfile(file, "<f4")
    vectors[2 * DIM] += 0.5
    vectors.tofile(file)
    location = location_of(kind, request, tmp_path)()
    target = GalleryStore.open_or_create(location, DIM, IDENTITY)
    with pytest.raises(GalleryDamagedError, match=r"the persons of 'p2\.png' in '.*' are damaged"):
        copy(source, target)
    assert sorted(one.path for one in target.entries()) == ["p0.png", "p1.png"]
    assert verify(target) == []
    target.close()


def write_version(folder: Path, version: int, frames: list[int]) -> GalleryStore:
    """Writes a gallery, or its next version, with a video and an image of this age."""
    store = GalleryStore.open_or_create(folder, DIM, IDENTITY)
    rng = np.random.default_rng(version)
    boxes = np.array([[1.0, 2, 30, 40]])
    with store.writing() as run, store.writer(store.ensure_writers(1)[0]) as writer:
        root = store.add_root(folder.parent / "images")
        video, image = (
            replace(entry(name, run), root=root, mtime_ns=version) for name in ("v.mp4", "p.png")
        )
        if version > 1:
            writer.append(replace(video, removed=True))
        for frame in frames:
            one = replace(video, frame=frame, offset=float(frame))
            writer.append(one, boxes, np.ones(1), unit_vectors(rng, 1, DIM))
        writer.append(replace(video, frame=END_OF_VIDEO, every=1.0))
        writer.append(image, boxes, np.ones(1), unit_vectors(rng, 1, DIM))
    return store


def contents(store: GalleryStore) -> list[tuple]:
    return sorted((e.path, e.mtime_ns, e.frame or 0, e.crc) for e in store.entries())


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_later_version_replaces_the_other(kind, request, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    source = write_version(tmp_path / "source", 1, [0, 1, 2, 3])
    target = GalleryStore.open_or_create(location_of(kind, request, tmp_path)(), DIM, IDENTITY)
    assert copy(source, target).images == 5
    earlier = copy(source, GalleryStore.open_or_create(tmp_path / "earlier", DIM, IDENTITY))
    assert earlier.images == 5
    source = write_version(tmp_path / "source", 2, [0, 2])
    report = copy(source, target)
    assert (report.images, report.present) == (3, 0) and len(contents(target)) == 4
    assert contents(target) == contents(source), "without the frames of the earlier version"
    report = copy(GalleryStore.open(tmp_path / "earlier"), target)
    assert (report.images, report.present) == (0, 5)
    assert contents(target) == contents(source), "an earlier version replaces nothing"
    target.close()


def test_mixed_versions_are_repaired(tmp_path: Path) -> None:
    """The target has the later version, and frames of an earlier one."""
    (tmp_path / "images").mkdir()
    target = write_version(tmp_path / "target", 1, [0, 1])
    with target.writing() as run, target.writer("0001") as writer:
        old = replace(entry("v.mp4", run), frame=5, offset=5.0)
        writer.append(replace(old, mtime_ns=2), np.ones((1, 4)), np.ones(1), np.eye(1, DIM))
    source = write_version(tmp_path / "source", 2, [0, 5])
    assert copy(source, target).images == 3
    assert contents(target) == contents(source)
    assert copy(source, target).present == 3
