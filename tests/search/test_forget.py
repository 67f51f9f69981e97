# SPDX-License-Identifier: Apache-2.0
"""Deleting from a gallery: gone from the disk, crash-safe, and without disturbing readers."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from galleries import IDENTITY, entry, unit_vectors, write_gallery

from person_search.search import FolderGallery, Gallery, folder_maintenance, verify
from person_search.search.cli import main
from person_search.search.entries import END_OF_VIDEO
from person_search.search.errors import GalleryError, GalleryLockedError
from person_search.search.folder_store import FolderStore
from person_search.search.maintenance import compact, forget


def all_bytes(folder: Path) -> bytes:
    """Contents and names of all files of a gallery."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return b"".join(os.fsencode(path) + path.read_bytes() for path in files)


def rows_of(gallery: Gallery, name: str) -> list[bytes]:
    """Vectors, boxes and scores of the persons of an image as they lie on the disk."""
    boxes, vectors = gallery.persons_in(gallery.images.paths.index(name))
    return [row.tobytes() for row in (*boxes, *vectors)]


def match_of(gallery: Gallery, vector: np.ndarray, **settings) -> dict:
    """The best match of an embedding, as a line of results.jsonl."""
    (match,) = gallery.search(vector, 1, **settings)
    return json.loads(json.dumps(match.to_json()))


def test_an_image_is_gone_from_the_disk(tmp_path) -> None:
    store, _ = write_gallery(tmp_path / "g", [2, 1, 3], segments=2)
    before = FolderGallery(store)
    gone, kept = rows_of(before, "p0.png"), rows_of(before, "p2.png")
    assert all(row in all_bytes(tmp_path / "g") for row in gone)
    report = forget(store, [tmp_path / "images" / "p0.png"])
    assert (report.images, report.persons, report.damaged) == (1, 2, [])
    left = all_bytes(tmp_path / "g")
    assert not any(row in left for row in gone) and b"p0.png" not in left
    assert all(row in left for row in kept)
    after = Gallery.open(tmp_path / "g", IDENTITY)
    assert after.images.paths == ["p2.png", "p1.png"] and len(after) == 4
    assert not [text for text in verify(store) if "missing" not in text]  # the files do not exist
    # what was opened before still works
    assert before.search(before.vectors[0][0], 1)[0].path.endswith("p0.png")


def test_a_source_is_gone_with_the_name_of_its_folder(tmp_path) -> None:
    store, _ = write_gallery(tmp_path / "g", [2, 1])
    rng = np.random.default_rng(1)
    (tmp_path / "private").mkdir()
    with store.writing() as run:
        root = store.add_root(tmp_path / "private")
        with store.writer(store.ensure_writers(1)[0]) as writer:
            for frame in (0, 5):
                one = entry("v.mp4", run, frame=frame)
                writer.append(
                    replace(one, root=root),
                    np.array([[1.0, 2, 30, 40]]), np.ones(1), unit_vectors(rng, 1, 8),
                )  # fmt: skip
            end = entry("v.mp4", run, frame=END_OF_VIDEO, error="the video is truncated")
            writer.append(replace(end, root=root))
    assert b"private" in all_bytes(tmp_path / "g")
    report = forget(store, [tmp_path / "private"])
    assert (report.images, report.persons) == (2, 2)
    left = all_bytes(tmp_path / "g").replace(os.fsencode(tmp_path), b"")
    assert b"private" not in left and b"v.mp4" not in left
    assert FolderGallery(store).images.paths == ["p0.png", "p1.png"]
    # the other folder again, by its number in the manifest
    assert forget(FolderStore(tmp_path / "g"), [tmp_path / "images"]).images == 2
    assert len(FolderGallery(FolderStore(tmp_path / "g"))) == 0


def test_a_person_is_gone_and_the_others_of_the_image_stay(tmp_path) -> None:
    store, vectors = write_gallery(tmp_path / "g", [3, 2])
    gallery = FolderGallery(store)
    match = match_of(gallery, vectors[1])
    report = forget(store, matches=[match])
    assert (report.images, report.persons) == (0, 1)
    left = all_bytes(tmp_path / "g")
    assert vectors[1].tobytes() not in left and gallery.boxes[0][1].tobytes() not in left
    after = FolderGallery(store)
    assert after.images.paths == ["p0.png", "p1.png"]
    assert np.array_equal(after.vectors[0], np.delete(vectors, 1, axis=0))


def test_a_tracklet_is_gone_in_all_its_frames(tmp_path) -> None:
    """Two persons walk through a video; the match names the best crop of one."""
    store = FolderStore.create(tmp_path / "g", 8, IDENTITY)
    people = unit_vectors(np.random.default_rng(2), 2, 8)
    (tmp_path / "videos").mkdir()
    with store.writing() as run:
        store.add_root(tmp_path / "videos")
        with store.writer(store.ensure_writers(1)[0]) as writer:
            for frame in range(5):
                x = 4.0 * frame
                writer.append(
                    entry("v.mp4", run, frame=frame, offset=0.5 * frame),
                    np.array([[x, 10, x + 20, 70], [200 - x, 10, 220 - x, 70]]),
                    np.array([0.9, 0.8]),
                    people,
                )
    gallery = FolderGallery(store)
    with store.writing():
        gallery.save_tracklets()
    match = match_of(gallery, people[0])
    assert match["tracklet"]["frames"] == 5
    report = forget(store, matches=[match])
    assert (report.images, report.persons) == (0, 5)
    assert people[0].tobytes() not in all_bytes(tmp_path / "g")
    after = FolderGallery(FolderStore(tmp_path / "g"))
    assert len(after) == 5 and match_of(after, people[1])["tracklet"]["frames"] == 5
    assert forget(store, [tmp_path / "videos"]).images == 5
    assert not (tmp_path / "g" / "tracklets.npz").exists()


def test_an_approximate_index_is_gone(tmp_path, monkeypatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr("person_search.search.approximate.MOST_VISITED", 1.0)
    from person_search.search.approximate import build_index

    store, vectors = write_gallery(tmp_path / "g", [64, 64, 64])
    build_index(store.folder, store.manifest.segments, FolderGallery(store).vectors)
    assert vectors[0].tobytes() in next((tmp_path / "g").glob("index-*.faiss")).read_bytes()
    forget(store, [tmp_path / "images" / "p0.png"])
    assert not any(vector.tobytes() in all_bytes(tmp_path / "g") for vector in vectors[:64])
    assert len(FolderGallery(store)) == 128


def test_what_the_gallery_lacks_deletes_nothing(tmp_path) -> None:
    store, vectors = write_gallery(tmp_path / "g", [1, 1])
    match = match_of(FolderGallery(store), vectors[0])
    before = [row for name in ("p0.png", "p1.png") for row in rows_of(FolderGallery(store), name)]
    known = tmp_path / "images" / "p1.png"
    with pytest.raises(GalleryError, match=r"has no image of '.*zzz'; nothing was deleted"):
        forget(store, [known, tmp_path / "zzz"])
    with pytest.raises(GalleryError, match=r"has no person at \[0, 0, 5, 5\] in '.*p0.png'"):
        forget(store, [known], [match | {"box": [0, 0, 5, 5]}])
    with pytest.raises(GalleryError, match="has no person at"):  # a frame of a video
        forget(store, matches=[match | {"frame": 3}])
    left = all_bytes(tmp_path / "g")
    assert all(row in left for row in before) and len(FolderGallery(store)) == 2


def test_a_folder_whose_name_starts_alike_stays(tmp_path) -> None:
    store, _ = write_gallery(tmp_path / "g", [1])
    with pytest.raises(GalleryError, match="has no image of"):
        forget(store, [tmp_path / "image"])
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert forget(store, [tmp_path / "link"]).images == 1


@pytest.mark.parametrize("step", ["before", "after"])
def test_an_interruption_leaves_all_or_is_completed_later(tmp_path, monkeypatch, step) -> None:
    """Killed before the manifest is replaced, or before the old segments are deleted."""
    store, vectors = write_gallery(tmp_path / "g", [1, 1, 1])
    name = "replace_manifest" if step == "before" else "_delete_left_over"
    owner = FolderStore if step == "before" else folder_maintenance
    real, calls = getattr(owner, name), []

    def killed(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:  # the first call starts the run
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, killed)
        forget(store, [tmp_path / "images" / "p0.png"])
    again = FolderStore(tmp_path / "g")
    assert len(FolderGallery(again)) == (3 if step == "before" else 2)
    assert vectors[0].tobytes() in all_bytes(tmp_path / "g")
    if step == "before":
        forget(again, [tmp_path / "images" / "p0.png"])
    else:
        compact(again)
    assert vectors[0].tobytes() not in all_bytes(tmp_path / "g")
    assert len(FolderGallery(FolderStore(tmp_path / "g"))) == 2


def test_not_while_another_process_writes(tmp_path) -> None:
    store, _ = write_gallery(tmp_path / "g", [1])
    with FolderStore(tmp_path / "g").writing(), pytest.raises(GalleryLockedError):
        forget(store, [tmp_path / "images"])


def test_the_command(tmp_path, capsys) -> None:
    _, vectors = write_gallery(tmp_path / "g", [2, 2])
    lines = [{"kind": "search"}]
    for rank, vector in enumerate(vectors[:2], 1):
        match = match_of(Gallery.open(tmp_path / "g"), vector)
        lines.append({"kind": "match", **match, "rank": rank})
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(*words: object) -> tuple[int, str]:
        try:
            code = main([str(word) for word in ("forget", "--gallery", tmp_path / "g", *words)])
        except SystemExit as e:
            code = e.code
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    code, text = run("--results", results, "--rank", 1)
    assert code == 0 and "0 images and 1 person deleted from the gallery." in text
    code, text = run("--source", tmp_path / "images" / "p1.png")
    assert code == 0 and "1 image and 2 persons deleted" in text
    assert len(Gallery.open(tmp_path / "g")) == 1
    for words, message in (
        (("--results", results, "--rank", 1), f"no person at {lines[1]['box']}"),
        (("--results", results, "--rank", 9), "--rank is 9; "),
        (("--results", tmp_path / "g" / "gallery.json", "--rank", 1), "does not hold the results"),
        (("--results", results), "--results and --rank are given together"),
        ((), "forget requires --source, or --results and --rank"),
    ):
        code, text = run(*words)
        assert code == 2 and message in text
