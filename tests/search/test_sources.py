# SPDX-License-Identifier: Apache-2.0
"""Which files are found, and camera and time of each."""

import os

import pytest
from PIL import Image

from person_search.search.images import image_suffixes
from person_search.search.sources import (
    Origin,
    OriginRules,
    describe_others,
    find_sources,
    parse_time,
    read_exif,
    read_table,
)


def names(listing) -> list[str]:
    return [source.path for source in listing.sources]


def test_a_folder_of_everything(tmp_path) -> None:
    folder = tmp_path / "images"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "gallery").mkdir()
    for name in ("b.JPG", "a.png", "v.mp4", "notes.txt", "sub/c.png", "sub/deep/d.webp",
                 "gallery/gallery.json", "gallery/x.png"):  # fmt: skip
        (folder / name).touch()
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.png")
    (tmp_path / "secret.png").touch()
    (folder / "broken.png").symlink_to("nowhere.png")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "in.png").symlink_to("a.png")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    listing = find_sources([folder])
    assert names(listing) == ["a.png", "b.JPG", "in.png", "v.mp4"]
    assert [source.is_video for source in listing.sources] == [False, False, False, True]
    assert listing.left_out == {
        str(folder / "broken.png"): "a link to a missing file",
        str(folder / "out.png"): "a link that leaves the folder",
    }
    assert listing.others == {".txt": 1, ".png": 1}, "the text and the pipe"
    deep = find_sources([folder, folder / "a.png"], recursive=True)
    assert names(deep) == ["a.png", "b.JPG", "in.png", "sub/c.png", "sub/deep/d.webp", "v.mp4"]


def test_nothing_found(tmp_path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="contains no image or video .*--recursive"):
        find_sources([tmp_path])
    with pytest.raises(FileNotFoundError, match="absent' does not exist"):
        find_sources([tmp_path / "absent"])
    with pytest.raises(ValueError, match="neither an image nor a video"):
        find_sources([tmp_path / "notes.txt"])


def with_exif(path, taken: str, zone: str = "", model: str = "X100") -> None:
    exif = Image.Exif()
    exif[0x0110] = model
    exif.get_ifd(0x8769)[0x9003] = taken
    if zone:
        exif.get_ifd(0x8769)[0x9011] = zone
    Image.new("RGB", (4, 4)).save(path, exif=exif)


def test_exif(tmp_path) -> None:
    with_exif(tmp_path / "a.jpg", "2026:05:01 12:30:00")
    assert read_exif(tmp_path / "a.jpg") == Origin("X100", parse_time("2026-05-01T12:30:00Z"))
    with_exif(tmp_path / "b.jpg", "2026:05:01 12:30:00", "+02:00")
    assert read_exif(tmp_path / "b.jpg").time == parse_time("2026-05-01T10:30:00Z")
    with_exif(tmp_path / "c.jpg", "    :  :     :  :  ")
    assert read_exif(tmp_path / "c.jpg") == Origin("X100", None)
    (tmp_path / "d.jpg").write_bytes(b"\xff\xd8\xff\xe1\x00\x10Exif\x00\x00II")
    assert read_exif(tmp_path / "d.jpg") == Origin()


def test_where_camera_and_time_come_from(tmp_path) -> None:
    (tmp_path / "north").mkdir()
    with_exif(tmp_path / "north" / "a.jpg", "2026:05:01 12:00:00")
    (source,) = find_sources([tmp_path], recursive=True).sources
    noon = parse_time("2026-05-01 12:00")
    assert OriginRules().of(source) == Origin("X100", noon)
    assert OriginRules(camera_from_folder=True).of(source) == Origin("north", noon)
    assert OriginRules(camera="gate", time=5.0).of(source) == Origin("gate", 5.0)
    table = {"north/a.jpg": Origin("door", None)}
    assert OriginRules(camera="gate", time=5.0, table=table).of(source) == Origin("door", 5.0)


def test_table(tmp_path) -> None:
    (tmp_path / "t.csv").write_text(
        "\ufefffile,time,camera\na.png,2026-05-01,north\nsub/b.png,,\n", "utf-8"
    )
    assert read_table(tmp_path / "t.csv") == {
        "a.png": Origin("north", parse_time("2026-05-01")), "sub/b.png": Origin(),
    }  # fmt: skip
    (tmp_path / "t.csv").write_text("file,time\na.png,2026-05-01\nb.png,noon\n")
    with pytest.raises(ValueError, match="line 3 of .*'noon' is not an ISO 8601 time"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("name,time\n")
    with pytest.raises(ValueError, match="required are 'file'"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError, match="absent.csv' does not exist"):
        read_table(tmp_path / "absent.csv")


def test_a_date_as_the_end_of_a_range_includes_that_day() -> None:
    noon, midnight = parse_time("2026-05-01T12:00"), parse_time("2026-05-01")
    for text in ("2026-05-01", "20260501", " 2026-05-01 "):
        assert parse_time(text) == midnight
        assert parse_time(text, end=True) == pytest.approx(midnight + 86_400, abs=1e-3)
        assert noon < parse_time(text, end=True) < parse_time("2026-05-02")
    assert parse_time("2026-05-01T12:00", end=True) == noon
    assert parse_time("2026-05-01T00:00", end=True) == midnight, "a time is taken as it is"


def test_kinds_of_images_and_hints_for_the_others(tmp_path) -> None:
    for name in ("a.jfif", "b.gif", "c.jpe", "d.ts", "e.h264", "f.HEIC", "g.txt", "h"):
        (tmp_path / name).touch()
    listing = find_sources([tmp_path])
    heif = ".heic" in image_suffixes()
    assert names(listing) == ["a.jfif", "b.gif", "c.jpe", *(["f.HEIC"] if heif else [])]
    lines = describe_others(listing.others)
    assert "1 file .ts (ffmpeg -i FILE -c copy FILE.mp4)" in lines
    assert "1 file .h264 (ffmpeg -i FILE -c copy FILE.mp4)" in lines
    assert "1 file without a suffix" in lines and "1 file .txt" in lines
    assert ("1 file .heic (pip install pillow-heif)" in lines) is not heif
    with pytest.raises(ValueError, match=r"neither an image nor a video .*ffmpeg -i FILE"):
        find_sources([tmp_path / "d.ts"])
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.ts").touch()
    with pytest.raises(FileNotFoundError, match=r"contains no image .*1 file \.ts \(ffmpeg"):
        find_sources([tmp_path / "only"])


def test_links_that_form_a_loop_and_deep_folders(tmp_path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "x.png").symlink_to("y.png")
    (tmp_path / "y.png").symlink_to("x.png")
    deep = tmp_path
    for _ in range(150):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "z.png").touch()
    listing = find_sources([tmp_path], recursive=True)
    assert [name[-5:] for name in names(listing)] == ["a.png", "z.png"]
    assert set(listing.left_out) == {str(tmp_path / "x.png"), str(tmp_path / "y.png")}


def test_a_table_that_is_not_text(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("file,camera\na.png,gate\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"line \d of '.*t\.csv': .*"):
        read_table(tmp_path / "t.csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every folder")
def test_an_unreadable_folder(tmp_path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "sub").mkdir(mode=0)
    listing = find_sources([tmp_path], recursive=True)
    assert names(listing) == ["a.png"]
    assert listing.left_out == {str(tmp_path / "sub"): "an unreadable folder (Permission denied)"}
