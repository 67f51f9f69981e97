# SPDX-License-Identifier: Apache-2.0
"""tools/shrink_checkpoint.py: weights in half precision, and files it refuses."""

import pytest
import torch
from programs import run_program_file
from safetensors.torch import load_file

PROGRAM = "tools/shrink_checkpoint.py"


def test_floats_become_half_and_counters_stay(tmp_path, capsys) -> None:
    source, target = tmp_path / "model.pth", tmp_path / "new" / "small.safetensors"
    model = {"weight": torch.tensor([[1.0, 0.1]]).t(), "seen": torch.tensor(70_000)}
    torch.save({"model": model, "optimizer": {"state": {}}}, source)
    assert run_program_file(PROGRAM, source, target) == 0
    assert capsys.readouterr().out.strip() == f"{target}: 0.0 MB"
    small = load_file(target)
    assert small.keys() == model.keys()
    assert torch.equal(small["weight"], model["weight"].half())
    assert small["seen"].dtype == torch.int64
    assert small["seen"] == 70_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "model.pth"),
        ({"model": {"a": torch.tensor([1e6])}}, "exceeds the range of float16"),
        (None, "model.pth"),
    ],
    ids=["no-weights", "range", "missing"],
)
def test_unusable_checkpoints_are_refused(tmp_path, content, message, capsys) -> None:
    if content is not None:
        torch.save(content, tmp_path / "model.pth")
    assert run_program_file(PROGRAM, tmp_path / "model.pth", tmp_path / "small.safetensors") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "small.safetensors").exists()


def test_other_suffixes_are_refused(tmp_path, capsys) -> None:
    assert run_program_file(PROGRAM, tmp_path / "model.pth", tmp_path / "small.pth") == 2
    assert "must end in .safetensors" in capsys.readouterr().err
