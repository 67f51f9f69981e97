# SPDX-License-Identifier: Apache-2.0
"""The benchmark at tiny size, in this process; the times themselves are not asserted."""

import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from programs import load_program
from psdiff_tiny import tiny_cfg

from person_search.search import indexing


@pytest.fixture(scope="module")
def tool():
    return load_program("benchmarks/benchmark_index.py")


def test_variants(tool, tmp_path) -> None:
    cfg = tiny_cfg()
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    words = ["--config-file", tmp_path / "config.yaml", "--weights", tmp_path / "weights.pth"]
    args = tool.parse_args([*map(str, words), "--images", "3", "--threads", "1"])
    tool.write_images(tmp_path, 3, (96, 64))
    files = sorted((tmp_path / "images").iterdir())
    assert [Image.open(file).size for file in files] == [(96, 64)] * 3
    threads, batch = torch.get_num_threads(), indexing.MAX_BATCH
    try:
        for variant in (tool.PLAIN, "float32"):
            assert min(tool.measure(variant, args, tmp_path)) > 0
    finally:
        torch.set_num_threads(threads)
    assert indexing.MAX_BATCH == batch > 1, "the plain way is limited to its own measurement"


def test_wrong_arguments(tool, capsys) -> None:
    with pytest.raises(SystemExit):
        tool.parse_args(["--images", "0"])
    assert "must be at least 1" in capsys.readouterr().err
