# SPDX-License-Identifier: Apache-2.0
"""tools/visualize_data.py on a tiny data set."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from programs import run_program_file
from tiny_model import register_tiny_dataset, unregister_dataset

DATASET = "tiny_to_draw"


@pytest.fixture
def records(tmp_path: Path) -> Iterator[list[dict]]:
    yield register_tiny_dataset(DATASET, tmp_path / "images")
    unregister_dataset(DATASET)


def test_images_of_a_data_set(records, tmp_path, capsys) -> None:
    out = tmp_path / "data"
    assert run_program_file("tools/visualize_data.py", DATASET, "--num", 2, "--output", out) == 0
    names = [f"{DATASET}_000000.png", f"{DATASET}_000003.png"]  # of six, evenly spaced
    assert sorted(p.name for p in out.iterdir()) == names
    with Image.open(out / names[0]) as image:
        assert image.format == "PNG" and image.width == 1000
    small = ("--long-side", 200)
    assert (
        run_program_file(
            "tools/visualize_data.py", DATASET, "--image-id", 5, "--output", out, *small
        )
        == 0
    )
    assert (out / f"{DATASET}_000005.png").is_file()
    assert (
        run_program_file("tools/visualize_data.py", DATASET, "--num", 99, "--output", out, *small)
        == 0
    )
    assert len(list(out.iterdir())) == 6


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("no_such_set",), "unknown data set 'no_such_set'; available: ['cuhk_sysu_test'"),
        ((DATASET, "--image-id", 0, 99), "--image-id [99]: the data set has no such image"),
        ((DATASET, "--num", 0), "--num must be at least 1"),
    ],
)
def test_wrong_input_for_images(arguments, text, records, tmp_path, capsys) -> None:
    assert (
        run_program_file("tools/visualize_data.py", *arguments, "--output", tmp_path / "data") == 2
    )
    errors = capsys.readouterr().err
    assert text in errors and "Traceback" not in errors
