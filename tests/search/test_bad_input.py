# SPDX-License-Identifier: Apache-2.0
"""What a person reads on the command line when the input is bad: one message, and status 2.

What the parts do with the same input is tested beside each of them; bad JSON files in
``tests/data/test_json_bad_input.py``, the page in ``test_page.py``.
"""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from galleries import write_video
from image_bomb import claimed_png
from PIL import Image

from person_search.search import FolderStore, Gallery

BOX = (10, 10, 60, 90)


def cut_short(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def changed_bytes(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "PNG", compress_level=0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def bomb(width: int):
    return lambda path: path.write_bytes(claimed_png(width, 10_000))


BAD_IMAGES = {
    "cut.jpg": (cut_short, "it is truncated (image file is truncated"),
    "changed.png": (changed_bytes, "broken PNG file"),
    "zero.jpg": (lambda path: path.write_bytes(b""), "the file is empty (0 bytes)"),
    "text.jpg": (lambda path: path.write_text("hello"), "it is not an image of a known format"),
    "bomb.png": (bomb(11_000), "it has 11000 x 10000 pixels; the maximum is 100 million"),
    "claim.png": (bomb(20_000), "it claims to have more than 178 million pixels"),
}


@pytest.fixture
def shown(capsys):
    """Returns what was printed since the last call: (output, errors)."""

    def read() -> tuple[str, str]:
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return printed.out, printed.err

    return read


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("how", ["box", "best"])
def test_a_query_image_that_cannot_be_read(how, search_tool, tmp_path, shown) -> None:
    assert search_tool("index") == 0
    shown()
    changes = {"box": BOX} if how == "box" else {"box": None, "best": True}
    for name, (write, reason) in BAD_IMAGES.items():
        write(tmp_path / name)
        assert search_tool("query", query=tmp_path / name, **changes) == 2
        _, errors = shown()
        assert errors.startswith(f"error: cannot read the image '{tmp_path / name}': {reason}")
        assert errors.count("\n") == 2, "the message, and how to see more"
        assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_folder_of_everything(search_tool, tmp_path, shown) -> None:
    """Damaged images, other files, broken links, a link out of the folder, a video that stops."""
    folder = tmp_path / "images"
    for name, (write, _) in BAD_IMAGES.items():
        write(folder / name)
    (folder / "notes.txt").write_text("no image, and no suffix of one")
    (folder / "to_nothing.jpg").symlink_to(folder / "absent.jpg")
    (tmp_path / "secret.png").write_bytes((folder / "p0.png").read_bytes())
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    whole = write_video(folder / "v.avi", 60).read_bytes()
    (folder / "v.avi").write_bytes(whole[: len(whole) // 2])
    assert search_tool("index") == 0
    output, _ = shown()
    gallery = Gallery.open(tmp_path / "g")
    names = {Path(path).name for path in gallery.images.paths}
    assert names == {"p0.png", "p1.png", "p2.png", "p3.png", "v.avi"}
    assert "7 files unreadable or truncated:" in output
    assert "2 files left out:" in output
    assert "1 file of other kinds not indexed:\n  1 file .txt" in output
    assert all(str(folder / name) in output for name in [*BAD_IMAGES, "v.avi", "out.png"])
    reasons = " ".join(entry.error for entry in gallery.failed)
    assert "stops after" in reasons and all(text in reasons for _, text in BAD_IMAGES.values())


def test_unusual_query_images_are_turned_and_converted(search_tool, tmp_path, shown) -> None:
    """The same scene as CMYK, with 16 bits, and lying on its side with an EXIF mark."""
    assert search_tool("index") == 0
    scene = Image.open(tmp_path / "images" / "p0.png").convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn to the right
    Image.merge("RGB", [scene] * 3).convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(np.asarray(scene).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    lying = Image.merge("RGB", [scene] * 3).transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "turned.png", exif=exif)
    found = {}
    for name in ("cmyk.tif", "deep.png", "turned.png"):
        assert search_tool("query", query=tmp_path / name, box=(70, 10, 120, 90)) == 0
        head, *matches = map(json.loads, (tmp_path / "out/results.jsonl").read_text().splitlines())
        assert head["query"][0]["box"] == [70, 10, 120, 90], "inside 128 x 96, not 96 x 128"
        found[name] = [(m["image"], m["similarity"]) for m in matches]
    assert found["deep.png"] == found["turned.png"], "the very same gray scene"
    sims = np.array([[sim for _, sim in sorted(matches)] for matches in found.values()])
    assert np.abs(sims - sims[1]).max() < 0.02
    shown()


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ((200, 10, 240, 90), "error: the box 200 10 240 90 lies outside the image '{path}', "
                             "which has 128 x 96 pixels (width x height)"),
        ((10, 10, 10, 90), "error: the box 10 10 10 90 has no area; give x1 y1 x2 y2 with "
                           "x1 < x2 and y1 < y2"),
        ((60, 10, 10, 90), "error: the box 60 10 10 90 has no area"),
        (("nan", 10, 60, 90), "error: the box nan 10 60 90 has no area"),
    ],
)  # fmt: skip
def test_invalid_boxes(box, text, search_tool, tmp_path, images, shown) -> None:
    assert search_tool("query", box=box) == 2, "reported before gallery and model are opened"
    assert shown()[1].startswith(text.format(path=images[0]))


def test_an_empty_gallery(search_tool, tmp_path, shown) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "zero.jpg").write_bytes(b"")
    assert search_tool("index", source=tmp_path / "bad") == 0
    assert "0 images with 0 persons added" in shown()[0]
    assert search_tool("query") == 0
    assert (
        "No person was found in 0 images (0 persons): the gallery is empty, and 1 file could not "
        "be read." in shown()[0]
    )
    assert search_tool("info") == 0
    assert "0 (1 file unreadable)" in shown()[0]


def test_another_model(search_tool, shown) -> None:
    assert search_tool("index") == 0
    for command in ("index", "query"):
        shown()
        assert search_tool(command, "MODEL.PSDIFF.STEPS", 2) == 2
        errors = shown()[1]
        assert "was made by another model or with other settings. Different: " in errors
        assert "index the images into a new gallery" in errors


def test_two_writers(search_tool, tmp_path, shown) -> None:
    assert search_tool("index") == 0
    shown()
    with FolderStore(tmp_path / "g").writing():
        for command in ("index", "compact"):
            assert search_tool(command) == 2
            errors = shown()[1]
            assert errors.startswith(f"error: the gallery '{tmp_path / 'g'}' is being written by")
            assert "Wait until that process has finished" in errors
        assert search_tool("query") == 0, "reading is possible at any time"
    assert search_tool("index") == 0


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/hostname", "link.png"])
def test_a_path_that_leaves_the_folder(name, search_tool, tmp_path, shown) -> None:
    """A gallery from another person whose entries name other files of this machine."""
    Image.new("RGB", (128, 96), (255, 0, 255)).save(tmp_path / "secret.png")
    assert search_tool("index") == 0
    shown()
    if name == "link.png":
        (tmp_path / "images" / name).symlink_to(tmp_path / "secret.png")
    (log,) = (tmp_path / "g" / "segments").glob("*/entries.log")
    lines = []
    for line in log.read_text().splitlines():
        entry = json.loads(line.partition(" ")[2])
        entry["path"] = name if entry["path"] == "p1.png" else entry["path"]
        text = json.dumps(entry, separators=(",", ":"))
        lines.append(f"{zlib.crc32(text.encode()):08x} {text}\n")
    log.write_text("".join(lines))
    message = f"names the image '{name}', which leaves the indexed folder '{tmp_path / 'images'}'"
    assert search_tool("verify") == 2
    assert message in shown()[0]
    if name != "link.png":
        assert search_tool("query") == 2
        assert message in shown()[1]
        return
    assert search_tool("query") == 0, "the others are shown"
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.count("The image is no longer readable") == 1
    assert report.count("<img") == 2 + 2 * 2, "the query and the two other images"


def test_a_gallery_that_is_damaged(search_tool, tmp_path, shown) -> None:
    assert search_tool("index") == 0
    shutil.copytree(tmp_path / "g", tmp_path / "copy")
    (log,) = (tmp_path / "g" / "segments").glob("*/entries.log")
    first, *rest = log.read_text().splitlines(keepends=True)
    log.write_text("".join([first.replace("p0.png", "p9.png"), *rest]))
    shown()
    assert search_tool("query") == 2
    errors = shown()[1]
    assert "line 1 of" in errors and "is damaged" in errors and "person-search compact" in errors
    assert search_tool("verify") == 2 and "1 problem." in shown()[0]
    assert search_tool("compact") == 0 and "3 images with" in shown()[0]
    (tmp_path / "copy" / "gallery.json").write_text("{")
    assert search_tool("info", gallery=tmp_path / "copy") == 2
    assert "is not a manifest of a gallery" in shown()[1]
