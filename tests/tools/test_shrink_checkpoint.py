# SPDX-License-Identifier: Apache-2.0
"""Weights of a checkpoint in half precision."""

import pytest
import torch
from programs import load_program
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def tool():
    return load_program("tools/shrink_checkpoint.py")


def test_floats_become_half_and_counters_stay(tool, tmp_path) -> None:
    source, target = tmp_path / "model.pth", tmp_path / "new" / "small.safetensors"
    model = {"weight": torch.tensor([[1.0, 0.1]]).t(), "seen": torch.tensor(70_000)}
    torch.save({"model": model, "optimizer": {"state": {}}}, source)
    assert tool.shrink(source, target) == target.stat().st_size
    small = load_file(target)
    assert small.keys() == model.keys()
    assert torch.equal(small["weight"], model["weight"].half())
    assert small["seen"].dtype == torch.int64
    assert small["seen"] == 70_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": {}}, "instead of a state dict"),
        ({"model": {"a": torch.tensor([1e6])}}, "a of .*fit"),
    ],
)
def test_what_cannot_be_shrunk(tool, tmp_path, content, message) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        tool.shrink(tmp_path / "model.pth", tmp_path / "small.safetensors")
    assert not (tmp_path / "small.safetensors").exists()
