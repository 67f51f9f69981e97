# SPDX-License-Identifier: Apache-2.0
"""Invalid requests end before a model is exported; tests/projects/psdiff/test_export.py exports."""

import pytest

from tools import export_model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "m.pt"], "must end in .onnx or .pt2"),
        (["--output", "m.pt2", "--int8"], "require an .onnx file"),
    ],
)
def test_wrong_arguments(arguments, message, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        export_model.main(["--config-file", "c.yaml", *arguments])
    assert exit_.value.code == 2 and message in capsys.readouterr().err
