# SPDX-License-Identifier: Apache-2.0
"""A config and weights of a tiny PSDiff, a folder of images, and the tools as functions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from programs import run_program_file
from psdiff_tiny import tiny_cfg

from person_search.search.cli import main


@pytest.fixture
def run_tool() -> Callable[..., int]:
    """Returns ``run(path, *arguments)``, see :func:`programs.run_program_file`."""
    return run_program_file


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``config.yaml`` and ``weights.pth`` of a tiny PSDiff."""
    folder = tmp_path_factory.mktemp("run")
    cfg = tiny_cfg(EMBED_DETECTIONS=True)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 48, 64
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.0
    cfg.OUTPUT_DIR = str(folder)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "weights.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def write_images(folder: Path, count: int, size: tuple[int, int] = (128, 96)) -> list[Path]:
    """Blocks of random colors; every image is another one."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        blocks = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        paths.append(folder / f"p{number}.png")
        Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(paths[-1])
    return paths


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Four images of 128 x 96 pixels in a folder of their own."""
    return write_images(tmp_path / "images", 4)


@pytest.fixture
def search_tool(tiny_run: Path, tmp_path: Path, images: list[Path]) -> Callable[..., int]:
    """Returns ``run(command, *opts, **changes)``: person-search with good arguments except for
    the changes; None leaves an option out, a list repeats it, True stands for a switch."""
    model = {"config_file": tiny_run / "config.yaml", "weights": tiny_run / "weights.pth"}
    good = {
        "index": {**model, "source": tmp_path / "images"},
        "query": {
            **model,
            "query": images[0],
            "box": (10, 10, 60, 90),
            "output": tmp_path / "out",
        },
    }

    def run(command: str, *opts: object, **changes: object) -> int:
        arguments = {"gallery": tmp_path / "g", **good.get(command, {}), **changes}
        words: list[object] = [command]
        for name, value in arguments.items():
            for one in value if isinstance(value, list) else [value]:
                if one is not None:
                    values = one if isinstance(one, tuple) else () if one is True else (one,)
                    words += [f"--{name.replace('_', '-')}", *values]
        try:
            return main([str(word) for word in (*words, *opts)])
        except SystemExit as e:
            return e.code

    return run
