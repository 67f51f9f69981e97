# SPDX-License-Identifier: Apache-2.0
"""Atomic file replacement."""

import errno
import os
import stat
import subprocess
import sys
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


def test_a_full_disk_is_reported_with_the_path(tmp_path) -> None:
    def write(file) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device: .*wanted") as error:
        write_atomically(tmp_path / "wanted", write)
    assert error.value.errno == errno.ENOSPC


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


def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


WRITE_OFTEN = """
import sys
from person_search.utils.files import write_atomically
for _ in range(50):
    write_atomically(sys.argv[1], 10_000 * sys.argv[2].encode())
"""


def test_several_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, 10_000 * b"a")
    command = [sys.executable, "-c", WRITE_OFTEN, str(path)]
    writers = [subprocess.Popen([*command, letter]) for letter in "bc"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        content = path.read_bytes()
        assert len(content) == 10_000 and len(set(content)) == 1
        seen.add(content[:1])
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen & {b"b", b"c"} and os.listdir(tmp_path) == ["file"]
