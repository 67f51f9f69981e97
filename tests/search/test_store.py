# SPDX-License-Identifier: Apache-2.0
"""Manifest, lock, paths, and which entries count."""

import errno
import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from galleries import IDENTITY, entry, unit_vectors, write_gallery

from person_search.search import FolderGallery, Gallery, compact, folder_store, verify
from person_search.search.errors import (
    GalleryError,
    GalleryLockedError,
    OtherModelError,
    UnsafePathError,
)
from person_search.search.folder_store import FolderStore, live_entries
from person_search.search.identity import ModelIdentity
from person_search.search.segment import LOG, VECTORS, SegmentContents


def test_create_and_open(tmp_path) -> None:
    made = FolderStore.create(tmp_path / "g", 4, IDENTITY)
    assert FolderStore(tmp_path / "g").manifest == made.manifest
    with made.writing() as run:
        assert run == 1 and made.ensure_writers(2) == ["0001", "0002"]
    assert FolderStore(tmp_path / "g").manifest.segments == ("0001", "0002")
    assert FolderStore.open_or_create(tmp_path / "g", 4, IDENTITY).manifest.run == 1


def test_a_folder_with_other_files_is_not_taken(tmp_path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(GalleryError, match="not empty .it contains 'letter.txt'"):
        FolderStore.create(tmp_path, 4, IDENTITY)
    with pytest.raises(GalleryError, match="is a file"):
        FolderStore.create(tmp_path / "letter.txt", 4, IDENTITY)
    with pytest.raises(GalleryError, match="is not a gallery: it contains no gallery.json"):
        FolderStore(tmp_path)


def test_a_kill_while_the_gallery_is_made(tmp_path) -> None:
    (tmp_path / ".gallery.json.123").write_text('{"form')
    (tmp_path / "gallery.lock").touch()
    with pytest.raises(GalleryError, match="is not a gallery: it contains no gallery.json"):
        FolderStore(tmp_path)  # what a kill has left is none yet
    made = FolderStore.create(tmp_path, 4, IDENTITY)
    opened = FolderStore(tmp_path)
    assert opened.manifest == made.manifest
    assert (opened.manifest.dim, opened.manifest.model) == (4, IDENTITY)
    with opened.writing() as run:
        assert run == 1 and opened.ensure_writers(1) == ["0001"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "not a manifest"), ("[]", "not a manifest"), ('{"format": "x"}', "its format is 'x'"),
        ('{"format": "person-search gallery", "version": 9}', "has version 9; this program reads"),
        ('{"format": "person-search gallery", "version": 1}', "not a manifest"),
    ],
)  # fmt: skip
def test_damaged_manifest(content, text, tmp_path) -> None:
    (tmp_path / "gallery.json").write_text(content)
    with pytest.raises(GalleryError, match=text):
        FolderStore(tmp_path)


def test_segments_cannot_be_named_outside(tmp_path) -> None:
    store, _ = write_gallery(tmp_path / "g", [1])
    manifest = json.loads((tmp_path / "g" / "gallery.json").read_text())
    manifest["segments"] = ["../../elsewhere"]
    (tmp_path / "g" / "gallery.json").write_text(json.dumps(manifest))
    with pytest.raises(GalleryError, match="not a manifest"):
        FolderStore(tmp_path / "g")


def test_another_model_is_refused_and_named(tmp_path) -> None:
    config = {"A": 1, "B": [2]}
    mine = ModelIdentity("M", "1" * 64, config, {"T": 0.5})
    FolderStore.create(tmp_path / "g", 4, mine)
    for other, text in (
        (ModelIdentity("M", "2" * 64, config, {"T": 0.5}), "the weights .sha256 1111.*here 2222"),
        (ModelIdentity("N", "1" * 64, config, {"T": 0.5}), "the architecture .M, here N"),
        (ModelIdentity("M", "1" * 64, {"A": 3, "B": [2]}, {"T": 0.5}), "A .1, here 3"),
    ):
        with pytest.raises(OtherModelError, match=text):
            FolderStore.open_or_create(tmp_path / "g", 4, other)
        with pytest.raises(OtherModelError, match=text):
            Gallery.open(tmp_path / "g", other)
    thresh = ModelIdentity("M", "1" * 64, config, {"T": 0.2})
    with pytest.raises(OtherModelError, match="T .0.5, here 0.2"):
        FolderStore.open_or_create(tmp_path / "g", 4, thresh)
    assert len(Gallery.open(tmp_path / "g", thresh)) == 0, "a query may detect as it likes"


HOLD = """
import sys
from person_search.search.file_lock import FileLock
FileLock(sys.argv[1], "it").acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_lock_of_a_living_and_of_a_killed_process(tmp_path, child_env, caplog) -> None:
    store, _ = write_gallery(tmp_path / "g", [1])
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "g" / "gallery.lock"],
        env=child_env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(GalleryLockedError, match=f"being written by process {other.pid} on"):
            with store.writing():
                pass
    finally:
        other.kill()
        other.communicate()
    with caplog.at_level(logging.INFO), store.writing():
        pass
    assert f"from process {other.pid}" in caplog.text and "which no longer runs" in caplog.text
    assert (tmp_path / "g" / "gallery.lock").read_text() == ""


def test_paths_stay_in_the_folder(tmp_path) -> None:
    store, _ = write_gallery(tmp_path / "g", [1])
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.txt")
    assert store.image_path(0, "sub/a.png") == tmp_path / "images" / "sub" / "a.png"
    for path in ("../secret.txt", "sub/../../secret.txt", str(tmp_path / "secret.txt"), "link.png"):
        with pytest.raises(UnsafePathError, match="leaves the indexed folder"):
            store.image_path(0, path)
    for root in (-1, 1):
        with pytest.raises(UnsafePathError, match="the manifest has 1"):
            store.image_path(root, "a.png")


def test_gallery_and_images_move_together(tmp_path) -> None:
    write_gallery(tmp_path / "old" / "g", [1])
    os.rename(tmp_path / "old", tmp_path / "new")
    expected = (tmp_path / "new" / "images" / "a.png").resolve()
    assert FolderStore(tmp_path / "new" / "g").image_path(0, "a.png") == expected


def test_last_entry_counts() -> None:
    first = [entry("a"), entry("b"), entry("v", frame=0), entry("v", frame=9)]
    second = [entry("a", run=2, rows=1), entry("v", run=2, removed=True),
              entry("v", run=2, frame=0, rows=2)]  # fmt: skip
    third = [entry("b", run=3, removed=True), entry("a", run=1)]
    live = live_entries([SegmentContents(x, 0, 0) for x in (first, second, third)])
    assert live == [[], [second[0], second[2]], []]


def test_compact_keeps_what_counts(tmp_path) -> None:
    store, feats = write_gallery(tmp_path / "g", [2, 1, 3, 0], segments=2)
    new = unit_vectors(np.random.default_rng(9), 1, 8)
    with store.writing() as run, store.writer("0002") as writer:
        writer.append(entry("p0.png", run), np.array([[1, 2, 3, 4]]), np.array([0.5]), new)
        writer.append(entry("p1.png", run, removed=True))
    before = FolderGallery(store).search(feats[3], None, per_image=False)
    report = compact(store)
    assert (report.images, report.persons, report.dropped_rows) == (3, 4, 3)
    assert report.damaged == [] and store.manifest.segments == ("0003",)
    assert [p.name for p in (tmp_path / "g" / "segments").iterdir()] == ["0003"]
    after = FolderGallery(FolderStore(tmp_path / "g")).search(feats[3], None, per_image=False)
    assert [(m.path, m.box, m.score) for m in after] == [(m.path, m.box, m.score) for m in before]
    assert len(after) == 4


@pytest.mark.parametrize("step", ["read_segment", "map_rows"])
def test_a_gallery_that_is_compacted_while_it_is_opened(tmp_path, monkeypatch, step) -> None:
    """The files are taken away after it has been seen that they are there."""
    _, feats = write_gallery(tmp_path / "g", [2, 1, 3])
    read = getattr(folder_store, step)

    def late(*given):
        monkeypatch.undo()
        compact(FolderStore(tmp_path / "g"))
        return read(*given)

    monkeypatch.setattr(folder_store, step, late)
    gallery = Gallery.open(tmp_path / "g")
    assert len(gallery) == 6 and len(gallery.search(feats[3], None, per_image=False)) == 6
    assert gallery.store.manifest.segments == ("0002",)


def test_interrupted_compaction_changes_nothing(tmp_path, monkeypatch) -> None:
    store, feats = write_gallery(tmp_path / "g", [2, 1])

    def interrupt(self, **changes):
        if "segments" in changes:
            raise KeyboardInterrupt
        original(self, **changes)

    original = FolderStore.replace_manifest
    monkeypatch.setattr(FolderStore, "replace_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compact(store)
    monkeypatch.undo()
    again = FolderStore(tmp_path / "g")
    assert len(FolderGallery(again)) == 3 and again.manifest.segments == ("0001",)
    with again.writing():
        assert again.ensure_writers(2) == ["0001", "0002"]
    assert len(FolderGallery(again)) == 3, "what the compaction left is not taken for a segment"


def test_verify_and_salvage(tmp_path) -> None:
    store, _ = write_gallery(tmp_path / "g", [1, 1, 1])
    for i in range(3):
        (tmp_path / "images" / f"p{i}.png").write_bytes(b"x")
        os.utime(tmp_path / "images" / f"p{i}.png", ns=(1, 1))
    assert verify(store) == []
    folder = tmp_path / "g" / "segments" / "0001"
    with (folder / LOG).open("ab") as log:
        log.write(b"0badc0de {")
    assert verify(store) == [], "the unfinished end of a run is not damage"
    vectors = bytearray((folder / VECTORS).read_bytes())
    vectors[5] ^= 1
    (folder / VECTORS).write_bytes(vectors)
    (tmp_path / "images" / "p1.png").unlink()
    (tmp_path / "images" / "p2.png").write_bytes(b"other")
    assert verify(store) == [
        "the persons of 'p0.png' in '0001' are damaged.",
        "the image 'p1.png' is missing.",
        "the image 'p2.png' has changed; index it again.",
    ]
    report = compact(store)
    assert report.damaged == ["the persons of 'p0.png' in '0001' are damaged."]
    assert report.images == 2 and len(FolderGallery(store)) == 2


def test_a_full_disk_does_not_keep_the_lock(tmp_path, monkeypatch) -> None:
    store, _ = write_gallery(tmp_path / "g", [1])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*gallery\.json'"):
            with store.writing():
                pass
    with store.writing() as run:
        assert run == 2
