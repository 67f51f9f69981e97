# SPDX-License-Identifier: Apache-2.0
"""projects/PSDiff/tools/visualize_denoising.py with a tiny PSDiff."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def visualize(run_tool, tiny_run, images, tmp_path) -> Callable[..., int]:
    """Returns ``run(*options, opts)``: the tool with good arguments and more."""

    def run(*options: object, opts: tuple = (), image: Path = images[0]) -> int:
        program = "projects/PSDiff/tools/visualize_denoising.py"
        return run_tool(
            program, "--config-file", tiny_run / "config.yaml", "--image", image,
            "--output", tmp_path / "out", *options,
            "MODEL.WEIGHTS", tiny_run / "weights.pth", *opts,
        )  # fmt: skip

    return run


def lines(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("[")]


def test_strip_and_animation(visualize, tmp_path, capsys) -> None:
    assert visualize() == 0
    printed = lines(capsys)
    assert printed[0] == "Start: pure noise, t = 999: 12 random boxes"
    assert [line.partition(": ")[0] for line in printed[1:3]] == [
        "Step 1 of 3, t = 999", "Step 2 of 3, t = 665",
    ]  # fmt: skip
    assert printed[3].startswith("Result: step 3 of 3, t = 332: ")
    strip, animation = tmp_path / "out" / "denoising.png", tmp_path / "out" / "denoising.gif"
    assert printed[4:] == [str(strip), str(animation)]
    with Image.open(strip) as image:
        assert image.format == "PNG" and image.width > 800
    with Image.open(animation) as image:
        assert image.n_frames == 4
    before = strip.read_bytes()
    assert visualize() == 0 and strip.read_bytes() == before, "the same again"
    assert visualize("--seed", 1) == 0 and strip.read_bytes() != before


def test_a_query_in_the_same_image_and_in_another(visualize, images, capsys) -> None:
    box = ("--query-box", 10, 10, 60, 90)
    assert visualize(*box, opts=("MODEL.PSDIFF.STEPS", 2)) == 0
    first = lines(capsys)
    assert "best match R" in first[2] and len(first) == 5
    assert visualize(*box, "--query-image", images[1], opts=("MODEL.PSDIFF.STEPS", 2)) == 0
    assert lines(capsys)[2] != first[2]


def test_every_sampler(visualize, capsys) -> None:
    for sampler in ("dpmsolver", "dpmsolver++"):
        assert visualize(opts=("MODEL.PSDIFF.SAMPLER", sampler)) == 0
        assert lines(capsys)[3].startswith("Result")


def test_a_threshold_that_nothing_reaches(visualize, capsys) -> None:
    assert visualize("--score-thresh", 1, "--query-box", 10, 10, 60, 90) == 0
    assert lines(capsys)[3].endswith(": no detection")


@pytest.mark.parametrize(
    ("options", "opts", "text"),
    [
        (("--query-image", "x.png"), (), "--query-image requires --query-box"),
        (("--score-thresh", 2), (), "--score-thresh is 2.0"),
        (("--query-box", 5, 5, 5, 9), (), "has no area"),
        (("--query-box", 500, 5, 600, 9), (), "lies outside the image"),
        (("--query-box", 1, 1, 9, 9, "--query-image", "no.png"), (), "no image 'no.png'"),
        ((), ("MODEL.PSDIFF.STEPS", 0), "MODEL.PSDIFF.STEPS is 0"),
        ((), ("MODEL.PSDIFF.SAMPLER", "euler"), "MODEL.PSDIFF.SAMPLER is 'euler'"),
        ((), ("MODEL.WEIGHTS", "absent.pth"), "absent.pth"),
        ((), ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"), "this program is for PSDiff"),
    ],
)
def test_wrong_input(options, opts, text, visualize, capsys) -> None:
    assert visualize(*options, opts=opts) == 2
    errors = capsys.readouterr().err
    assert text in errors and "Traceback" not in errors


def test_an_unreadable_image(visualize, tmp_path, capsys) -> None:
    (tmp_path / "text.png").write_text("not an image")
    assert visualize(image=tmp_path / "text.png") == 2
    assert "cannot read the image" in capsys.readouterr().err
