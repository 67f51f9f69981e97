# SPDX-License-Identifier: Apache-2.0
"""A segment holds whole images only, wherever its writer is interrupted."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from galleries import entry, unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from person_search.search.entries import Entry, checksum
from person_search.search.errors import GalleryDamagedError, GalleryLockedError
from person_search.search.segment import LOG, VECTORS, SegmentWriter, map_rows, read_segment

DIM = 3


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs in the writer."""


class MortalWriter(SegmentWriter):
    """Dies once so many bytes have been written, in the middle of a write if need be."""

    bytes_left = 10**9

    def _write(self, handle: int, content: bytes) -> None:
        part = content[: self.bytes_left]
        self.bytes_left -= len(part)
        os.write(handle, part)
        if len(part) < len(content):
            raise Killed


def image(number: int, count: int) -> tuple:
    rng = np.random.default_rng(number)
    return (
        entry(f"p{number}.png", time=float(number)),
        rng.uniform(0, 99, (count, 4)),
        rng.uniform(0, 1, count),
        unit_vectors(rng, count, DIM),
    )


def contents(folder: Path) -> list[tuple]:
    segment = read_segment(folder)
    vectors, boxes = map_rows(folder, segment.rows, DIM)
    found = []
    for item in segment.entries:
        rows = slice(item.first, item.first + item.rows)
        assert not item.rows or checksum(vectors[rows], boxes[rows]) == item.crc
        found.append((item.path, boxes[rows].tolist(), vectors[rows].tolist()))
    return found


def write_all(folder: Path, counts: list[int]) -> list[tuple]:
    with SegmentWriter(folder, DIM, durable=False) as writer:
        for number, count in enumerate(counts):
            writer.append(*image(number, count))
    return contents(folder)


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 4), max_size=8),
    lives=st.lists(st.integers(0, 700), max_size=6),
)
def test_any_kills_leave_a_prefix_and_the_end_is_the_same(counts, lives, tmp_path_factory) -> None:
    """Append, be killed after any byte, reopen, go on: never more, less or other than whole."""
    folder = tmp_path_factory.mktemp("kills")
    whole = write_all(folder / "whole", counts)
    for life in [*lives, 10**9]:
        writer = MortalWriter(folder / "killed", DIM, durable=False)
        writer.bytes_left = life
        done = len(read_segment(folder / "killed").entries)
        acknowledged = done
        try:
            for number in range(done, len(counts)):
                writer.append(*image(number, counts[number]))
                acknowledged += 1
        except Killed:
            pass
        seen = contents(folder / "killed")  # a reader, before anything is repaired
        assert seen == whole[: len(seen)]
        assert len(seen) == acknowledged, "what append() has returned for is there, and no more"
        writer.close()  # what the kernel does at the end of a process
    assert contents(folder / "killed") == whole
    for name in (VECTORS, LOG, "boxes.f32"):
        assert (folder / "killed" / name).read_bytes() == (folder / "whole" / name).read_bytes()


def test_line_and_back() -> None:
    full = Entry(2, 1, 'a "b"/ü.png', 5, 6, frame=0, offset=0.0, time=-1.5, camera="c", rows=3)
    for item in (full, entry("p.png"), entry("v.mp4", frame=-1, every=0.5, error="short")):
        assert Entry.from_line(item.to_line()[:-1]) == item
    line = full.to_line()[:-1]
    for i in range(len(line)):
        changed = line[:i] + bytes([line[i] ^ 1]) + line[i + 1 :]
        assert Entry.from_line(changed) is None, f"byte {i}"


def test_full_disk_takes_the_image_back(tmp_path) -> None:
    class FullDisk(SegmentWriter):
        full = False

        def _write(self, handle: int, content: bytes) -> None:
            if self.full and content[8:9] == b" ":  # the log, after the rows
                os.write(handle, content[:20])
                raise OSError(errno.ENOSPC, "No space left on device")
            super()._write(handle, content)

    with FullDisk(tmp_path / "s", DIM) as writer:
        writer.append(*image(0, 2))
        writer.full = True
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 's'}'"):
            writer.append(*image(1, 2))
        writer.full = False
        writer.append(*image(2, 1))
    assert [path for path, *_ in contents(tmp_path / "s")] == ["p0.png", "p2.png"]
    assert (tmp_path / "s" / VECTORS).stat().st_size == 3 * DIM * 4


def test_damage_in_the_middle_is_not_an_unfinished_end(tmp_path) -> None:
    write_all(tmp_path / "s", [1, 1, 1])
    log = tmp_path / "s" / LOG
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + lines[1].replace(b"p1", b"pX") + lines[2])
    before = log.read_bytes()
    for attempt in (lambda: read_segment(tmp_path / "s"), lambda: SegmentWriter(log.parent, DIM)):
        with pytest.raises(GalleryDamagedError, match="line 2 of .*entries.log' is damaged"):
            attempt()
    assert log.read_bytes() == before, "nothing was cut off"


def test_rows_that_are_missing(tmp_path) -> None:
    write_all(tmp_path / "s", [2, 2])
    os.truncate(tmp_path / "s" / VECTORS, 3 * DIM * 4)
    with pytest.raises(GalleryDamagedError, match="holds 3 persons, but the log .* refers to 4"):
        map_rows(tmp_path / "s", read_segment(tmp_path / "s").rows, DIM)


def test_embeddings_of_another_length_are_refused(tmp_path) -> None:
    with SegmentWriter(tmp_path / "s", DIM + 1) as writer:
        with pytest.raises(ValueError, match=r"the gallery expects \(2, 4\)"):
            writer.append(*image(0, 2))
    assert contents(tmp_path / "s") == []


def test_one_writer_at_a_time(tmp_path) -> None:
    with SegmentWriter(tmp_path / "s", DIM):
        with pytest.raises(GalleryLockedError, match=f"written by process {os.getpid()} on"):
            SegmentWriter(tmp_path / "s", DIM)
    SegmentWriter(tmp_path / "s", DIM).close()
