# SPDX-License-Identifier: Apache-2.0
"""Reading images of any kind, and validating boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_bomb import claimed_png
from PIL import Image

from person_search.data import BadImageError
from person_search.search import clip_box, read_image
from person_search.search.images import image_suffixes, shrink


def test_channel_order(tmp_path) -> None:
    Image.new("RGB", (3, 2), (10, 20, 30)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[10, 20, 30]] * 3] * 2
    assert read_image(tmp_path / "a.png", "BGR")[0, 0].tolist() == [30, 20, 10]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_color_modes_become_rgb(mode: str, tmp_path) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (4, 5), (102, 102, 102)).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (5, 4, 3) and np.abs(image.astype(int) - 102).max() < 3


def damaged(kind: str, path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    content = {"empty": b"", "text": b"no image\n", "cut": whole[: len(whole) // 2]}[kind]
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["empty", "text", "cut"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_damaged_image_is_named_in_one_line(kind: str, suffix: str, tmp_path) -> None:
    path = tmp_path / f"bad{suffix}"
    damaged(kind, path)
    with pytest.raises(BadImageError, match=f"bad{suffix}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


def test_messages_about_damaged_images(tmp_path) -> None:
    path = tmp_path / "bad.png"
    for kind, text in (("empty", "the file is empty (0 bytes)"),
                       ("text", "it is not an image of a known format"),
                       ("cut", "it is truncated (")):  # fmt: skip
        damaged(kind, path)
        with pytest.raises(BadImageError) as caught:
            read_image(path)
        assert str(caught.value).startswith(f"cannot read the image '{path}': {text}")


def test_bytes_of_a_png_that_have_changed_are_noticed(tmp_path) -> None:
    """Pillow unpacks such a file into a wrong image without a word."""
    path = tmp_path / "bad.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, compress_level=0)  # so that any bytes can be unpacked
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(BadImageError, match="broken PNG"):
        read_image(path)


def test_absent_image(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="the image '.*nothing.jpg' does not exist"):
        read_image(tmp_path / "nothing.jpg")


def test_box_is_clipped() -> None:
    assert clip_box([-5, 10, 50, 200], 100, 80).tolist() == [0, 10, 50, 80]


@pytest.mark.parametrize(
    "box",
    [[10, 10, 10, 20], [20, 10, 10, 20], [10, 20, 20, 20], [0, 0, float("nan"), 5],
     [0, 0, float("inf"), 5], [1, 2, 3]],
)  # fmt: skip
def test_box_without_area(box) -> None:
    with pytest.raises(ValueError, match="has no area"):
        clip_box(box, 100, 80)


@pytest.mark.parametrize(
    "box", [[100, 0, 120, 10], [0, 80, 10, 90], [-20, 0, 0, 10], [0, -9, 9, 0]]
)
def test_box_outside(box) -> None:
    with pytest.raises(ValueError, match="outside the image, which has 100 x 80 pixels"):
        clip_box(box, 100, 80)
    with pytest.raises(ValueError, match=r"outside the image 'a.png', which has 100 x 80 pixels"):
        clip_box(box, 100, 80, "a.png")


@given(st.lists(st.floats(-300, 300), min_size=4, max_size=4))
def test_clipped_box_has_area_and_lies_inside(box) -> None:
    try:
        x1, y1, x2, y2 = clip_box(box, 100, 80)
    except ValueError:
        return
    assert 0 <= x1 < x2 <= 100 and 0 <= y1 < y2 <= 80


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (20, 2020)])
def test_a_line_is_refused(tmp_path, size) -> None:
    Image.new("RGB", size).save(tmp_path / "line.png")
    with pytest.raises(BadImageError, match=r"line.png.*too narrow to show a person"):
        read_image(tmp_path / "line.png")
    Image.new("RGB", (20, 2000)).save(tmp_path / "narrow.png")
    assert read_image(tmp_path / "narrow.png").shape == (2000, 20, 3)


def test_huge_image_is_refused_before_it_is_unpacked(tmp_path) -> None:
    for width, text in ((12_000, "it has 12000 x 10000 pixels; the maximum is 100 million"),
                        (20_000, "claims to have more than 178 million pixels")):  # fmt: skip
        (tmp_path / "bomb.png").write_bytes(claimed_png(width, 10_000))
        with pytest.raises(BadImageError, match=text):
            read_image(tmp_path / "bomb.png")


def test_16_bit_images_keep_their_brightness(tmp_path) -> None:
    values = np.array([[0, 257, 25_700, 65_535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 100, 255]


def test_exif_orientation_is_applied(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn to the right
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, :8] = 250
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    shown = read_image(tmp_path / "turned.png")
    assert shown.shape == (16, 8, 3) and shown[0, 0, 0] == 250 and shown[-1, 0, 0] == 0


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".avif", ".heic"])
def test_further_formats(suffix: str, tmp_path) -> None:
    if suffix not in image_suffixes():
        pytest.skip(f"this Pillow has no decoder for {suffix}")
    frames = [Image.new("RGB", (40, 30), (gray,) * 3) for gray in (200, 20)]
    more = {"save_all": True, "append_images": frames[1:]} if suffix == ".gif" else {}
    frames[0].save(tmp_path / f"a{suffix}", **more)
    pixels = read_image(tmp_path / f"a{suffix}")
    assert pixels.shape == (30, 40, 3) and np.abs(pixels.astype(int) - 200).max() < 6, "frame 0"


def test_the_hint_for_a_format_without_a_decoder(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    monkeypatch.setattr("person_search.search.images.image_suffixes", lambda: (".jpg",))
    with pytest.raises(BadImageError, match=r"a\.heic': .*; pip install pillow-heif"):
        read_image(tmp_path / "a.heic")


def test_shrinking_gives_the_pixels_of_pillow() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 123, 3), np.uint8)
    wanted = np.asarray(Image.fromarray(image).resize((41, 30), Image.Resampling.BILINEAR))
    got = shrink(image, 30, 41)
    assert got.dtype == np.uint8 and got.shape == wanted.shape
    difference = np.abs(got.astype(int) - wanted)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.1
