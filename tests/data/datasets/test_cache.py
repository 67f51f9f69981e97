# SPDX-License-Identifier: Apache-2.0
"""The caches of converted arrays: when they are used and renewed."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from mat_trees import small_cuhk_sysu

from person_search.data import (
    load_cuhk_sysu_protocol,
)
from person_search.data.datasets.cache import cache_paths, cached_arrays, write_cache
from person_search.data.datasets.cuhk_sysu_files import PROTOCOL_FOLDER


class Builder:
    """Counts how often the arrays had to be made."""

    def __init__(self):
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"numbers": np.arange(3, dtype=np.int32), "names": np.array(["a", "bc"])}


@pytest.fixture(autouse=True)
def second_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps the tests out of the user's own cache folder."""
    place = tmp_path / "second"
    monkeypatch.setenv("PERSON_SEARCH_CACHE", str(place))
    return place


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "source.mat"
    path.parent.mkdir()
    path.write_bytes(b"one")
    return path


def test_arrays_are_made_once(source: Path) -> None:
    build = Builder()
    first = cached_arrays(source.parent, "x", [source], build)
    second = cached_arrays(source.parent, "x", [source], build)
    assert build.calls == 1
    assert set(second) == set(first) == {"numbers", "names"}
    assert all(np.array_equal(first[k], second[k]) for k in first)
    assert second["numbers"].dtype == np.int32
    assert [path.name for path in (source.parent / ".person_search").iterdir()] == ["x.npz"]


@pytest.mark.parametrize("change", ["length", "time"])
def test_a_changed_source_renews_them(source: Path, change: str) -> None:
    build = Builder()
    cached_arrays(source.parent, "x", [source], build)
    if change == "length":
        stat = source.stat()
        source.write_bytes(b"other")
        os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        os.utime(source, ns=(1, 1))
    cached_arrays(source.parent, "x", [source], build)
    assert build.calls == 2


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 cut off"])
def test_a_damaged_cache_file_is_written_again(
    source: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    build = Builder()
    cached_arrays(source.parent, "x", [source], build)
    cache_paths(source.parent, "x")[0].write_bytes(content)
    with caplog.at_level(logging.WARNING):
        cached_arrays(source.parent, "x", [source], build)
    assert build.calls == 2 and "damaged cache file" in caplog.text
    cached_arrays(source.parent, "x", [source], build)
    assert build.calls == 2


def block(folder: Path) -> None:
    """Puts a file where a folder would have to be made: not writable, whoever runs the test."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_bytes(b"")


def test_a_read_only_root_uses_the_second_place(source: Path, second_place: Path) -> None:
    block(source.parent / ".person_search")
    build = Builder()
    for _ in range(2):
        cached_arrays(source.parent, "x", [source], build)
    assert build.calls == 1
    assert [path.name for path in second_place.rglob("*.npz")] == ["x.npz"]


def test_without_a_writable_place_it_works_and_says_so(
    source: Path, second_place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    block(source.parent / ".person_search")
    block(second_place)
    build = Builder()
    with caplog.at_level(logging.WARNING):
        arrays = cached_arrays(source.parent, "x", [source], build)
    assert arrays["numbers"].tolist() == [0, 1, 2]
    assert "PERSON_SEARCH_CACHE" in caplog.text
    cached_arrays(source.parent, "x", [source], build)
    assert build.calls == 2


def test_a_full_disk_leaves_no_part_behind(
    source: Path, second_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(file, **arrays):
        file.write(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    assert write_cache(source.parent, "x", "key", {"a": np.zeros(2)}) is None
    assert list(source.parent.rglob("*.npz")) == list(source.parent.rglob("*.tmp")) == []
    assert list(second_place.rglob("*.tmp")) == []


def test_a_changed_protocol_is_read_again(tmp_path: Path) -> None:
    root = small_cuhk_sysu(tmp_path / "data")
    before = load_cuhk_sysu_protocol(root, "g100")
    other = small_cuhk_sysu(
        tmp_path / "other",
        galleries={100: [[("s6.jpg", None), ("s7.jpg", None)]] * 2},
    )
    name = f"{PROTOCOL_FOLDER}/TestG100.mat"
    (root / name).write_bytes((other / name).read_bytes())
    after = load_cuhk_sysu_protocol(root, "g100")
    assert before.gallery.tolist() == [[1, 2, 3], [2, 3, 0]]
    assert after.gallery.tolist() == [[2, 3], [2, 3]]
