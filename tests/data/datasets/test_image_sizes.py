# SPDX-License-Identifier: Apache-2.0
"""Image sizes are read once, and again if an image changes."""

from pathlib import Path

import pytest
from mat_trees import small_cuhk_sysu, write_image
from PIL import Image

from person_search.data import (
    IncompleteDatasetError,
    IrregularityLog,
    load_cuhk_sysu,
)
from person_search.data.datasets import image_sizes
from person_search.data.datasets.cuhk_sysu_files import CUHK_SYSU_LAYOUT


def sizes_of(paths: list[Path], log: IrregularityLog | None = None) -> list[list[int]]:
    log = IrregularityLog() if log is None else log
    root = paths[0].parent
    return image_sizes.image_sizes(root, "sizes", paths, CUHK_SYSU_LAYOUT, log).tolist()


def test_sizes_are_read_once_and_again_where_an_image_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{i}.jpg" for i in range(3)]
    for index, path in enumerate(paths[:2]):
        write_image(path, 40 + index, 60)
    assert sizes_of(paths[:2]) == [[40, 60], [41, 60]]

    opened = []
    real = image_sizes.look_at_image
    monkeypatch.setattr(image_sizes, "look_at_image", lambda p: opened.append(p.name) or real(p))
    assert sizes_of(paths[:2]) == [[40, 60], [41, 60]]
    assert opened == []
    write_image(paths[1], 50, 70)
    write_image(paths[2], 20, 30)
    assert sizes_of(paths[::-1]) == [[20, 30], [50, 70], [40, 60]]
    assert sorted(opened) == ["1.jpg", "2.jpg"]


def test_a_damaged_image_has_size_zero_until_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s1.jpg"
    path.write_bytes(b"not an image")
    log = IrregularityLog()
    assert sizes_of([path], log) == [[0, 0]]
    assert [item.kind for item in log] == ["unreadable_image"] and str(path) in log[0].where
    write_image(path, 40, 60)
    assert sizes_of([path]) == [[40, 60]]


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "s1.jpg", 40, 60)
    with pytest.raises(IncompleteDatasetError, match=r"s2\.jpg does not exist"):
        sizes_of([tmp_path / "s1.jpg", tmp_path / "s2.jpg"])


@pytest.mark.parametrize(("orientation", "size"), [(1, (40, 60)), (3, (40, 60)), (6, (60, 40))])
def test_the_turn_mark_of_cameras_counts(tmp_path: Path, orientation: int, size: tuple) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / "turned.jpg", exif=exif)
    assert sizes_of([tmp_path / "turned.jpg"]) == [list(size)]


def test_a_data_set_with_a_damaged_image_still_loads(tmp_path: Path) -> None:
    root = small_cuhk_sysu(tmp_path / "data")
    (root / "Image" / "SSM" / "s2.jpg").write_bytes(b"not an image")
    records = load_cuhk_sysu(root, "train")
    assert [record["height"] for record in records] == [120, 0, 120]
