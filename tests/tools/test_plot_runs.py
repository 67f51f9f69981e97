# SPDX-License-Identifier: Apache-2.0
"""tools/plot_runs.py on files of metrics written by hand."""

import json

import numpy as np
import pytest
from PIL import Image
from programs import load_program


@pytest.fixture(scope="module")
def tool():
    return load_program("tools/plot_runs.py")


def write_run(folder, lines) -> None:
    folder.mkdir()
    text = "\n".join(map(json.dumps, lines))
    (folder / "metrics.json").write_text(text)


def test_a_resumed_training_overwrites_what_it_repeats(tool, tmp_path) -> None:
    lines = [{"iteration": i, "total_loss": v} for i, v in ((0, 3.0), (1, 2.0), (2, 9.0), (2, 1.5))]
    write_run(tmp_path / "a", [*lines, {"iteration": 2, "search/mAP": 40.0}])
    curves = tool.read_curves(tmp_path / "a")
    assert curves["total_loss"] == ([0, 1, 2], [3.0, 2.0, 1.5])
    assert curves["search/mAP"] == ([2], [40.0])


def test_running_median(tool) -> None:
    assert tool.smoothed([1, 9, 2, 3, 4], 3) == [5.0, 2.0, 3.0, 3.0, 3.5]


def test_one_panel_per_metric_and_one_color_per_training(tool, tmp_path) -> None:
    for name, offset in (("a", 0.0), ("b", 1.0)):
        lines = [{"iteration": i, "total_loss": 3 + offset - i / 50} for i in range(100)]
        write_run(tmp_path / name, [*lines, {"iteration": 99, "search/mAP": 40.0 + offset}])
    images = []
    for folders in (["a"], ["a", "b"]):
        out = tmp_path / "plots" / f"{len(folders)}.png"
        words = [str(tmp_path / name) for name in folders]
        assert tool.main([*words, "--output", str(out)]) == 0
        images.append(np.asarray(Image.open(out).convert("RGB")))
    blue, orange = (31, 119, 180), (255, 127, 14)
    has = [[(image == color).all(axis=2).any() for color in (blue, orange)] for image in images]
    assert has == [[True, False], [True, True]]
    assert images[0].shape == (696, 960, 3)  # two panels of 2.6 inches and 0.6, at 120 dpi


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no metrics.json"),
        ("", "is empty"),
        ("[1]\n", "is not a file of metrics"),
        ('{"iteration": 3, "loss": "x"}', "is not a file of metrics"),
        ('{"iteration": 3, "loss": 1}', "no training has search/mAP; they have loss"),
    ],
)
def test_bad_input_is_one_line(tool, tmp_path, capsys, content, message) -> None:
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    words = [str(tmp_path), "--output", str(tmp_path / "x.png"), "--metrics", "search/mAP"]
    with pytest.raises(SystemExit, match="2"):
        tool.main(words)
    error = capsys.readouterr().err.splitlines()[0]
    assert error.startswith("error: ") and message in error
