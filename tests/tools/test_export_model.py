# SPDX-License-Identifier: Apache-2.0
"""Invalid requests end before a model is built; tests/projects/psdiff/test_export.py exports."""

import pytest
from programs import run_program_file

PROGRAM = "tools/export_model.py"
CONFIG = "PSDiff/tiny/psdiff_slim_synthetic.yaml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "m.pt"], "must end in .onnx or .pt2"),
        (["--output", "m.pt2", "--int8"], "require an .onnx file"),
        (["--output", "m.onnx", "--heads-only", "--evaluate"], "requires the whole model"),
    ],
)
def test_wrong_arguments(arguments, message, capsys) -> None:
    assert run_program_file(PROGRAM, "--config-file", CONFIG, *arguments) == 2
    assert message in capsys.readouterr().err


def test_missing_weights(tmp_path, capsys) -> None:
    target = tmp_path / "m.onnx"
    options = ["--config-file", CONFIG, "--weights", tmp_path / "w.pth", "--output", target]
    assert run_program_file(PROGRAM, *options) == 2
    assert "w.pth' does not exist" in capsys.readouterr().err and not target.exists()
