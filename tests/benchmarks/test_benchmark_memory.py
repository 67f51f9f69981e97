# SPDX-License-Identifier: Apache-2.0
"""The benchmark at tiny size; the memory itself is not asserted."""

import pytest
from programs import load_program
from psdiff_tiny import tiny_cfg


@pytest.fixture(scope="module")
def tool():
    return load_program("benchmarks/benchmark_memory.py")


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("memory") / "config.yaml"
    path.write_text(tiny_cfg().dump())
    sizes = ["--size", "48", "64", "--side", "64", "--family", "tiny"]
    return ["--config-file", str(path), *sizes]


@pytest.mark.parametrize(
    ("part", "variant"),
    [
        ("PSDiff, inference", "bfloat16"),
        ("PSDiff, training", "bfloat16"),
        ("DiffPS, inference", "float32"),
        ("DiffPS, training", "bfloat16"),
    ],
)
def test_a_variant(tool, words, part, variant) -> None:
    values = tool.measure(part, variant, tool.parse_args(words))
    assert values["process"] > values["beyond weights"] > 0


def test_table_of_a_process(tool, words, capsys, monkeypatch) -> None:
    monkeypatch.setitem(tool.VARIANTS, "PSDiff, inference", ("eager",))
    assert tool.main([*words, "--parts", "PSDiff, inference"]) == 0
    printed = capsys.readouterr().out
    assert "PSDiff, inference, eager" in printed and printed.count("1.00") == 2
