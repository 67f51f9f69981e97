# SPDX-License-Identifier: Apache-2.0
"""MATLAB files: reading in parts equals reading at once, and errors name damaged files."""

import struct as binary
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mat_trees import idlocate, ishard, struct
from scipy.io import loadmat, savemat

from person_search.data.datasets import matlab
from person_search.data.datasets.matlab import (
    cell_strings,
    load_variable,
    stream_struct,
    struct_rows,
    text,
)

FIELDS = ["imname", "idlocate", "ishard"]

boxes = st.none() | st.tuples(*[st.integers(0, 65535)] * 4)
scenes = st.lists(
    st.tuples(st.from_regex(r"s[0-9]{1,9}\.jpg", fullmatch=True), boxes), min_size=1, max_size=5
)


def make_table(galleries: list[list[tuple]]) -> np.ndarray:
    rows = []
    for scene in galleries:
        gallery = [(name, idlocate(box), ishard(box)) for name, box in scene]
        rows.append((struct([*FIELDS, "idname"], [("q", idlocate(None), 1, "p1")]), gallery))
    return struct(["Query", "Gallery"], [(query, struct(FIELDS, g)) for query, g in rows])


def plain(value: np.ndarray) -> object:
    """Turns nested object arrays into lists that can be compared."""
    if value.dtype.names:
        return [value.shape, {name: plain(value[name]) for name in value.dtype.names}]
    if value.dtype == object:
        return [value.shape, [plain(np.asarray(item)) for item in value.reshape(-1)]]
    return [value.shape, value.dtype.str, value.tolist()]


def same(one: tuple, other: tuple) -> bool:
    return [plain(v) for v in one] == [plain(v) for v in other]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(galleries=st.lists(scenes, min_size=1, max_size=6), packed=st.booleans())
@pytest.mark.parametrize("batch_bytes", [1, 1 << 20])
def test_in_parts_equals_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_bytes: int,
    galleries: list,
    packed: bool,
) -> None:
    monkeypatch.setattr(matlab, "_BATCH_BYTES", batch_bytes)
    path = tmp_path / "table.mat"
    savemat(path, {"before": "text", "Table": make_table(galleries)}, do_compression=packed)
    expected = list(struct_rows(loadmat(path)["Table"], ["Gallery", "Query"], ""))
    got = list(stream_struct(path, "Table", ["Gallery", "Query"]))
    assert len(got) == len(expected)
    assert all(same(one, other) for one, other in zip(got, expected, strict=True))


def test_an_element_may_be_longer_than_one_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(matlab, "_CHUNK_BYTES", 7)
    path = tmp_path / "table.mat"
    savemat(path, {"Table": make_table([[("s1.jpg", (1, 2, 3, 4))]] * 3)}, do_compression=True)
    assert len(list(stream_struct(path, "Table", ["Query"]))) == 3


def big_endian(path: Path, variable: str) -> None:
    """Writes a struct array of one element with the field ``a`` = 7.0 in the other byte order."""

    def part(kind: int, content: bytes) -> bytes:
        return binary.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)

    def matrix(mat_class: int, name: bytes, rest: bytes) -> bytes:
        head = part(6, binary.pack(">II", mat_class, 0)) + part(5, binary.pack(">ii", 1, 1))
        return part(14, head + part(1, name) + rest)

    field = matrix(6, b"", part(9, binary.pack(">d", 7.0)))
    names = binary.pack(">HHi", 4, 5, 8) + part(1, b"a".ljust(8, b"\0"))
    header = b"MATLAB 5.0 MAT-file".ljust(124) + binary.pack(">H", 0x0100) + b"MI"
    path.write_bytes(header + matrix(2, variable.encode(), names + field))


def test_the_other_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "table.mat"
    big_endian(path, "Table")
    assert loadmat(path)["Table"]["a"][0, 0].item() == 7.0
    assert [value.item() for (value,) in stream_struct(path, "Table", ["a"])] == [7.0]


def test_format_4_is_left_to_scipy(tmp_path: Path) -> None:
    path = tmp_path / "old.mat"
    savemat(path, {"Table": np.zeros((2, 2))}, format="4")
    with pytest.raises(ValueError, match=r"the fields \['a'\] are absent"):
        list(stream_struct(path, "Table", ["a"]))


def test_an_empty_array_gives_nothing(tmp_path: Path) -> None:
    path = tmp_path / "table.mat"
    savemat(path, {"Table": struct(["Query"], [])})
    assert list(stream_struct(path, "Table", ["Query"])) == []


def test_an_absent_variable_or_field_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "table.mat"
    savemat(path, {"Table": make_table([[("s1.jpg", None)]])})
    with pytest.raises(ValueError, match=r"table\.mat.*\['Table'\].*\['TestG50'\]"):
        list(stream_struct(path, "TestG50", ["Query"]))
    with pytest.raises(ValueError, match=r"table\.mat.*\['Answer'\].*\['Query', 'Gallery'\]"):
        list(stream_struct(path, "Table", ["Answer"]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_cut_off_anywhere_is_named(tmp_path: Path, packed: bool, share: float) -> None:
    path = tmp_path / "table.mat"
    rows = [[(f"s{i}.jpg", (i, 2, 3, 4))] for i in range(50)]
    savemat(path, {"Table": make_table(rows)}, do_compression=packed)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"table\.mat is not a readable MATLAB file.*copy it"):
        list(stream_struct(path, "Table", ["Query"]))
    with pytest.raises(ValueError, match=r"table\.mat is not a readable MATLAB file"):
        load_variable(path, ["Table"])


def test_something_that_is_no_matrix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.mat"
    savemat(path, {"Table": make_table([[("s1.jpg", None)]])})
    content = bytearray(path.read_bytes())
    # the first field follows the file's header, the tag, flags, sizes, name and field names
    at = content.index(binary.pack("<I", 14), 140)
    content[at] = 9
    path.write_bytes(content)
    with pytest.raises(ValueError, match="table.mat is not a readable MATLAB file"):
        list(stream_struct(path, "Table", ["Query"]))


def test_bytes_that_are_not_packed_data(tmp_path: Path) -> None:
    path = tmp_path / "table.mat"
    savemat(path, {"Table": make_table([[("s1.jpg", None)]])}, do_compression=True)
    content = path.read_bytes()
    path.write_bytes(content[:136] + zlib.compress(b"short") + content[160:])
    with pytest.raises(ValueError, match="table.mat is not a readable MATLAB file"):
        list(stream_struct(path, "Table", ["Query"]))


def test_a_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_variable(tmp_path / "nowhere.mat", ["x"])


def test_strings() -> None:
    assert text(np.array(["s1.jpg"])) == "s1.jpg" and text(np.zeros((0, 0))) == ""
    cells = np.empty((1, 2), object)
    cells[0, 0], cells[0, 1] = np.array(["a"]), np.array(["b"])
    assert cell_strings(cells) == cell_strings(cells.T) == ["a", "b"]


def test_files_of_version_7_3_are_named_as_such(tmp_path: Path) -> None:
    """Their header announces version 2; the content is HDF5."""
    path = tmp_path / "new.mat"
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    path.write_bytes(header.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n")
    for read in (lambda: load_variable(path, ["x"]), lambda: list(stream_struct(path, "x", []))):
        with pytest.raises(ValueError, match=r"new\.mat is a MATLAB file of version 7.3.*'-v7'"):
            read()
