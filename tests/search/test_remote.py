# SPDX-License-Identifier: Apache-2.0
"""Images at URLs, on the file system in memory of fsspec."""

import json
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
from color_model import ColorModel, paint
from galleries import write_video

from person_search.search import (
    FolderStore,
    Gallery,
    IndexOptions,
    PersonEmbedder,
    find_sources,
    index_images,
    verify,
)
from person_search.search.cli import main
from person_search.search.errors import RemoteError, UnsafePathError
from person_search.search.labeling import _list_images
from person_search.search.maintenance import forget
from person_search.search.query import QueryPerson
from person_search.search.remote import RemotePath, _state, parse_place

RED, BLUE = (250, 0, 0), (0, 0, 250)


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    """URL of a folder with a red and a blue image, a video and a text; one is in a subfolder."""
    url = f"memory://{uuid.uuid4().hex}"
    paint(tmp_path / "red.png", {(0, 0, 100, 80): RED})
    paint(tmp_path / "blue.png", {(0, 0, 100, 80): BLUE})
    write_video(tmp_path / "v.avi")
    (tmp_path / "notes.txt").write_text("no image")
    fs = fsspec.filesystem("memory")
    for name in ("red.png", "sub/blue.png", "v.avi", "notes.txt"):
        fs.pipe_file(f"{url}/{name}", (tmp_path / Path(name).name).read_bytes())
    return url


def index(bucket: str, tmp_path: Path, **options):
    embedder = PersonEmbedder(ColorModel(), image_format="RGB", min_size=80, max_size=100)
    listing = find_sources([bucket], recursive=True)
    return index_images(embedder, tmp_path / "g", listing, IndexOptions(**options), False)


def test_index_search_show_and_forget(bucket, tmp_path) -> None:
    listing = find_sources([bucket], recursive=True)
    assert [one.path for one in listing.sources] == ["red.png", "sub/blue.png", "v.avi"]
    assert listing.others == {".txt": 1}
    assert len(find_sources([bucket]).sources) == 2, "without subfolders"
    report = index(bucket, tmp_path, every=0.5)
    assert report.images > 3 and not report.failed
    assert index(bucket, tmp_path, every=0.5).unchanged == 3
    gallery = Gallery.open(tmp_path / "g")
    match = gallery.search(np.eye(3, dtype=np.float32)[2], 1)[0]
    assert match.path == f"{bucket}/sub/blue.png" and not gallery.is_changed(match.image)
    image = gallery.read_image(match.image)
    assert image[5, 5].tolist() == [*BLUE]
    as_query = QueryPerson(match.path, match.box, np.eye(3, dtype=np.float32)[2])
    assert np.array_equal(as_query.read(), image)
    skipped = gallery.search(np.eye(3, dtype=np.float32)[2], 1, skip=[match.path])
    assert skipped[0].path != match.path
    (frame, *_) = [one for one in gallery.all_images() if one.frame]
    assert gallery.read_image(frame.key).ndim == 3
    assert verify(gallery.store) == []
    assert forget(gallery.store, [f"{bucket}/sub"]).images == 1
    assert "blue" not in str(list(FolderStore(tmp_path / "g").entries()))


def test_what_changes_is_indexed_again(bucket, tmp_path) -> None:
    index(bucket, tmp_path)
    fs = fsspec.filesystem("memory")
    paint(tmp_path / "new.png", {(0, 0, 100, 80): BLUE})
    fs.pipe_file(f"{bucket}/red.png", (tmp_path / "new.png").read_bytes())
    fs.rm(f"{bucket}/v.avi")
    gallery = Gallery.open(tmp_path / "g")
    changed = {one.path for one in gallery.all_images() if gallery.is_changed(one.key)}
    assert changed == {"red.png"}
    report = index(bucket, tmp_path, prune=True)
    assert (report.images, report.unchanged, report.removed) == (1, 1, 1)
    fs.pipe_file(f"{bucket}/bad.png", b"no image")
    (why,) = index(bucket, tmp_path).failed.values()
    assert why.startswith(f"cannot read the image '{bucket}/bad.png': ")


def test_nothing_but_indexed_folders_is_read(bucket, tmp_path) -> None:
    index(f"{bucket}/sub", tmp_path)
    store = FolderStore(tmp_path / "g")
    assert store.image_path(0, "blue.png") == RemotePath(f"{bucket}/sub/blue.png")
    for path in ("../red.png", "/red.png", "a/%2e%2e/%2E%2E/red.png"):
        with pytest.raises(UnsafePathError, match="leaves the indexed"):
            store.image_path(0, path)
    assert not list(store.places_of([f"{bucket}/red.png", f"{bucket}/subway/blue.png"]))
    manifest = json.loads((tmp_path / "g" / "gallery.json").read_text())
    manifest["roots"] = ["file:///etc"]
    (tmp_path / "g" / "gallery.json").write_text(json.dumps(manifest))
    with pytest.raises(RemoteError, match="is not a URL of a server"):
        FolderStore(tmp_path / "g").image_path(0, "blue.png")


def test_errors_are_one_line(bucket, tmp_path, capsys) -> None:
    for url, text in (
        ("nosuch://b/x", "Protocol not known"),
        ("https://me:secret@host/x", "https://***@host/x' has a password"),
        ("simplecache::memory://x", "is not a URL of a server"),
        (f"{bucket}nothing", "contains no image or video"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["index", "--gallery", "g", "--source", url, "--config-file", "unread.yaml"])
        said = capsys.readouterr().err
        assert end.value.code == 2 and text in said and "secret" not in said
        assert "Traceback" not in said
    index(bucket, tmp_path)
    with pytest.raises(ValueError, match="a data set names local files"):
        _list_images(Gallery.open(tmp_path / "g"), tmp_path)


def test_versions_of_files() -> None:
    day = "Mon, 30 Nov 2026 20:00:00 GMT"
    assert _state({"size": 3, "Last-Modified": day})[1] == 1796068800 * 10**9
    assert _state({"size": 3, "updated": "2026-11-30T20:00:00Z"})[1] == 1796068800 * 10**9
    assert _state({"size": 3, "mtime": 1.5}) == (3, 1_500_000_000)
    assert _state({"size": 3, "ETag": "a"}) != _state({"size": 3, "ETag": "b"})
    assert parse_place("images/a.png") == Path("images/a.png")
