# SPDX-License-Identifier: Apache-2.0
"""Files that are replaced as a whole."""

import os
import stat
from multiprocessing import get_context
from pathlib import Path

import pytest

from person_search.utils.files import write_atomically


@pytest.mark.parametrize("durable", [False, True])
def test_content_or_writer(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"bytes", durable=durable)
    assert path.read_bytes() == b"bytes"
    write_atomically(path, lambda file: file.write(b"written"), durable=durable)
    assert path.read_bytes() == b"written"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("temporary", [None, "other"])
def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error, temporary) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(file) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write, temporary=temporary and tmp_path / temporary)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_others_may_read_as_the_user_wishes(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def _write_often(path: Path, letter: bytes) -> None:
    for _ in range(50):
        write_atomically(path, 10_000 * letter)


def test_several_writers_do_not_mix(tmp_path: Path) -> None:
    path, context = tmp_path / "file", get_context("spawn")
    write_atomically(path, 10_000 * b"a")
    writers = [context.Process(target=_write_often, args=(path, letter)) for letter in (b"b", b"c")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        content = path.read_bytes()
        assert len(content) == 10_000 and len(set(content)) == 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert os.listdir(tmp_path) == ["file"]
