# SPDX-License-Identifier: Apache-2.0
"""The program that visualizes DiffPS, from its command line to the files."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffps_model_tiny import NUM_PIDS, tiny_cfg
from PIL import Image
from programs import load_program

from diffps.tiny import write_tiny_diffusion

tool = load_program("projects/DiffPS/tools/visualize_diffusion.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, its config, random weights of it, and an image."""
    from detectron2.modeling import build_model

    folder = tmp_path_factory.mktemp("inside")
    cfg = tiny_cfg(write_tiny_diffusion(folder / "sd"))
    cfg.DATALOADER.MAPPER = "DiffPSMapper"
    cfg.MODEL.WEIGHTS = ""
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.0  # random weights have low scores
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "weights.pth")
    cfg.MODEL.REID.NUM_PIDS = 0
    (folder / "config.yaml").write_text(cfg.dump())
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "street.png")
    return folder


@pytest.fixture
def run(place, tmp_path, monkeypatch, capsys):
    """Runs the program; returns exit status, output, errors and the files written."""

    def call(*arguments, image=None):
        monkeypatch.setattr(
            sys,
            "argv",
            ["visualize_diffusion.py", "--config-file", str(place / "config.yaml"),
             "--image", str(image or place / "street.png"), "--output", str(tmp_path / "out"),
             *([] if "--size" in arguments else ["--size", "120"]), *map(str, arguments)],
        )  # fmt: skip
        try:
            status = tool.main()
        except SystemExit as e:
            status = e.code
        said = capsys.readouterr()
        files = sorted(path.name for path in (tmp_path / "out").glob("*"))
        return status, said.out, said.err, files

    return call


def test_all_panels_without_weights(run, tmp_path):
    status, out, _, files = run("--box", 10, 8, 50, 90, "--timesteps", 0, 500)
    assert status == 0
    names = [*tool.PANELS, "overview"]
    assert files == sorted(f"{name}.png" for name in names)
    assert [Path(line).stem for line in out.splitlines() if line.endswith(".png")] == names
    sizes = {name: Image.open(tmp_path / "out" / f"{name}.png").size for name in names}
    # image and 5 words; image and 2 timesteps are narrower than the caption's room
    assert sizes["attention"] == (18 + 132 + 12 + 6 * 120 + 5 * 12 + 18, sizes["attention"][1])
    assert sizes["pca"][0] == 640
    assert sizes["overview"][0] == max(width for width, _ in sizes.values())
    assert sizes["overview"][1] > sum(sizes[name][1] for name in tool.PANELS)


def test_sfan_needs_a_box(run):
    status, _, err, files = run("--figures", "sfan")
    assert status == 2 and "SFAN needs a box" in err and files == []


def test_weights_bring_their_number_of_identities(run, place):
    path = place / "weights.pth"
    assert tool.saved_identities(str(path)) == NUM_PIDS
    status, _, err, files = run("--figures", "dgrpn", "sfan", "MODEL.WEIGHTS", path)
    assert status == 0, err
    assert files == ["dgrpn.png", "overview.png", "sfan.png"], "boxes come from the detections"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--figures", "attention", "--words", "umbrella"], "'umbrella'"),
        (["--figures", "attention", "--layers", "u7r0"], "--layers names 'u7r0_map'"),
        (["--figures", "attention", "--heads", "first"], "--heads is first"),
        (["--figures", "pca", "--features", "u3r0_x"], "--features names 'u3r0_x'"),
        (["--figures", "dgrpn", "--box", 200, 10, 220, 50], "lies outside the image"),
        (["--dataset", "nowhere"], "unknown dataset 'nowhere'"),
        (["--figures", "dgrpn", "MODEL.WEIGHTS", "none.pth"], "there is no weight file"),
        (["--figures", "dgrpn", "MODEL.WEIGHTS", __file__], "is not a checkpoint"),
        (["--figures", "pca", "MODEL.BACKBONE.NAME", "ResNetActivations"], "Remove them from"),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "this tool is for DiffPS"),
        (["--size", 10], "--size is 10"),
    ],
)
def test_wrong_input_is_one_message(run, arguments, words):
    status, _, err, files = run(*arguments)
    assert status == 2 and words in err and files == []
    assert "Traceback" not in err


def test_weights_that_do_not_fit(run, place, tmp_path):
    saved = torch.load(place / "weights.pth", weights_only=True)["model"]
    name = "det_aggregator.aggregate.0.weight"
    name = name if name in saved else next(key for key in saved if key.startswith("det_agg"))
    saved[name] = saved[name][:3]
    torch.save({"model": saved}, tmp_path / "other.pth")
    status, _, err, files = run("--figures", "dgrpn", "MODEL.WEIGHTS", tmp_path / "other.pth")
    assert status == 2 and files == []
    assert "det_aggregator" in err


def test_no_image(run, tmp_path):
    assert "there is no image" in run(image=tmp_path / "none.jpg")[2]
    (tmp_path / "text.jpg").write_text("text")
    status, _, err, _ = run(image=tmp_path / "text.jpg")
    assert status == 2 and "cannot read the image" in err


def test_heads_of_the_command_line():
    assert tool.parse_heads(["config"], [1]) == ([1], True)
    assert tool.parse_heads(["all"], [1]) == ([], False)
    assert tool.parse_heads(["mean"], [1]) == ([], True)
    assert tool.parse_heads(["0", "2"], [1]) == ([0, 2], False)
