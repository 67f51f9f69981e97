# SPDX-License-Identifier: Apache-2.0
"""Images of every kind: what the mapper reads and what the check reports."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from image_bomb import claimed_png
from json_trees import write_json_set
from PIL import Image

from person_search.config import add_person_search_config
from person_search.data import BadImageError, IrregularityLog, build_mapper, load_person_search_json
from person_search.data.datasets.check import check_json_dataset
from person_search.data.image_io import look_at_image, read_image_file

RAMP = np.arange(90 * 160, dtype=np.uint16).reshape(90, 160) * 4


def scene() -> Image.Image:
    """An image whose upper left quarter is red."""
    pixels = np.full((90, 160, 3), 60, np.uint8)
    pixels[:45, :80] = (230, 20, 20)
    return Image.fromarray(pixels)


def gray_16(path: Path) -> None:
    Image.fromarray(RAMP).save(path)


def gray_16_tiff(path: Path) -> None:
    Image.fromarray(RAMP.astype(np.int32)).save(path)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees to the right
    scene().save(path, exif=exif, quality=95)


def cmyk(path: Path) -> None:
    scene().convert("CMYK").save(path, quality=95)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def not_an_image(path: Path) -> None:
    path.write_bytes(b"<html>not found</html>")


def truncated(path: Path) -> None:
    scene().save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-200])


def bomb(path: Path) -> None:
    path.write_bytes(claimed_png(40_000, 40_000))


def floating_point(path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(path)


def make_mapper(on_bad_image: str = "raise"):
    cfg = get_cfg()
    add_person_search_config(cfg)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FORMAT = 0, "RGB"
    cfg.DATALOADER.ON_BAD_IMAGE = on_bad_image
    return build_mapper(cfg, is_train=False)


def record_of(path: Path, size: tuple[int, int] = (90, 160)) -> dict:
    return {
        "file_name": str(path),
        "image_id": 1,
        "height": size[0],
        "width": size[1],
        "cam_id": None,
        "annotations": [],
        "queries": [],
    }


@pytest.mark.parametrize(("write", "suffix"), [(gray_16, ".png"), (gray_16_tiff, ".tif")])
def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path, write, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path)
    image = make_mapper()(record_of(path))["image"]
    expected = (RAMP >> 8).astype(np.uint8)
    assert len(np.unique(expected)) > 200, "not cut off at white"
    for channel in image.numpy():
        np.testing.assert_array_equal(channel, expected)
    assert look_at_image(str(path), decode=True).oddities == ("deep_image",)


def test_an_exif_mark_turns_image_and_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    turned(path)
    image = make_mapper()(record_of(path, (160, 90)))["image"].numpy()
    assert image.shape == (3, 160, 90)
    assert image[0, 10, 80] > 200 and image[0, 10, 10] < 100, "red is at the upper right now"
    state = look_at_image(str(path))
    assert state.size == (160, 90) and state.oddities == ("exif_turned",)
    with pytest.raises(ValueError, match="160 x 90"):
        make_mapper()(record_of(path, (90, 160)))


def test_printing_colors_become_rgb(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    cmyk(path)
    image = make_mapper()(record_of(path))["image"].numpy()
    assert image[0, 10, 10] > 200 and image[1, 10, 10] < 60
    assert look_at_image(str(path)).oddities == ("cmyk_image",)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_other_modes_become_three_channels(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    scene().convert(mode).save(path)
    assert read_image_file(str(path), "BGR").shape == (90, 160, 3)
    assert look_at_image(str(path), decode=True).error == ""


BAD = {
    "empty.jpg": (empty, "the file is empty (0 bytes)"),
    "not_an_image.jpg": (not_an_image, "not an image of a known format"),
    "truncated.jpg": (truncated, "truncated"),
    "bomb.png": (bomb, "claims to have more than 178 million pixels"),
    "floating_point.tif": (floating_point, "32 bits per pixel"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_mapper_names_unreadable_images(tmp_path: Path, name: str, caplog) -> None:
    write, message = BAD[name]
    write(tmp_path / name)
    with pytest.raises(BadImageError) as raised:
        make_mapper()(record_of(tmp_path / name))
    assert message in str(raised.value) and name in str(raised.value)
    skipped = make_mapper("skip")(record_of(tmp_path / name))
    assert skipped["bad_image"] and skipped["image"].shape == (3, 90, 160)
    assert message in caplog.text


def test_the_check_finds_them_all_at_once(tmp_path: Path) -> None:
    good = {"turned.jpg": turned, "cmyk.jpg": cmyk, "deep.png": gray_16}
    writers = good | {name: write for name, (write, _) in BAD.items()}
    for name, write in writers.items():
        write(tmp_path / name)
    images = [
        {"id": number, "file_name": name, "width": 160, "height": 90}
        for number, name in enumerate([*writers, "absent.jpg"])
    ]
    annotations = [
        {"image_id": number, "bbox": [5, 5, 20, 60], "person_id": 1}
        for number in range(len(images))
    ]
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    report = check_json_dataset(path, tmp_path, decode=True)
    for name, (_, message) in BAD.items():
        assert any(name in error and message in error for error in report.errors), name
    assert any("absent.jpg: the file does not exist" in error for error in report.errors)
    (mismatch,) = [error for error in report.errors if "turned.jpg" in error]
    assert "is 90 x 160 (width x height), but the file says 160 x 90" in mismatch
    assert "EXIF orientation" in mismatch
    assert len(report.errors) == len(BAD) + 2
    kinds = sorted(item.kind for item in report.irregularities)
    assert kinds == ["cmyk_image", "deep_image", "exif_turned"]


def test_a_size_that_contradicts_the_file(tmp_path: Path) -> None:
    path = write_json_set(tmp_path)
    text = path.read_text().replace('"width": 160', '"width": 150', 1)
    path.write_text(text)
    (error,) = check_json_dataset(path).errors
    assert "images[0]: a/1.jpg is 160 x 90 (width x height), but the file says 150 x 90" in error
    with pytest.raises(ValueError, match="90 x 160 .*but its record says 90 x 150"):
        make_mapper()(load_person_search_json(path)[0])


@pytest.mark.parametrize("name", ["empty.jpg", "not_an_image.jpg", "bomb.png"])
def test_reading_a_set_gets_past_images_without_a_size(tmp_path: Path, name: str) -> None:
    """The data set loads without them; the mapper handles them."""
    BAD[name][0](tmp_path / name)
    scene().save(tmp_path / "good.png")
    images = [{"id": 0, "file_name": name}, {"id": 1, "file_name": "good.png"}]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": []}))
    log = IrregularityLog()
    records = load_person_search_json(tmp_path / "set.json", irregularities=log)
    assert [(r["height"], r["width"]) for r in records] == [(0, 0), (90, 160)]
    assert [item.kind for item in log] == ["unreadable_image", "no_boxes", "no_boxes"]


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("settings", [{}, {"subsampling": 0}, {"progressive": True, "quality": 30}])
def test_jpeg_has_the_pixels_of_pillow(tmp_path, image_format, settings) -> None:
    """OpenCV decodes what Pillow would; else results would depend on the decoder."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    Image.fromarray(noise).resize((149, 101)).save(tmp_path / "a.jpg", **settings)
    wanted = np.asarray(Image.open(tmp_path / "a.jpg"))
    mine = read_image_file(str(tmp_path / "a.jpg"), image_format)
    assert np.array_equal(mine, wanted if image_format == "RGB" else wanted[:, :, ::-1])
    assert mine.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_truncated_jpeg_is_refused(tmp_path, share) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: int(share * len(data))])
    with pytest.raises(OSError, match="truncated"):
        read_image_file(str(tmp_path / "a.jpg"), "RGB")
