# SPDX-License-Identifier: Apache-2.0
"""benchmarks/benchmark_search.py at a tiny size: it prints every figure, and its kills are survived."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

TOOL = Path(__file__).resolve().parents[2] / "benchmarks" / "benchmark_search.py"


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_search", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tool, monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_search.py", *map(str, words)])
    tool.main()


def test_figures(tool, monkeypatch, tmp_path, capsys) -> None:
    pytest.importorskip("faiss", reason="the approximate index needs FAISS")
    sizes = ("--persons", 3000, "--dim", 16, "--queries", 4)
    run(tool, monkeypatch, *sizes, "--folder", tmp_path)
    printed = capsys.readouterr().out
    for text in (
        r"memory, exact: \d+\.\d+ x the vectors",
        r"exact search: p50 [\d.]+ ms \([\d.]+\), p95",
        r"FAISS flat index: p50",
        r"exact search takes [\d.]+ times as long",
        r"memory, approximate: [\d.]+ x",
        r"approximate search is [\d.]+ times as fast",
    ):
        assert re.search(text, printed), text
    assert float(re.search(r"recall of the 10 best: ([\d.]+)", printed).group(1)) >= 0.9
    assert list(tmp_path.iterdir()) == [], "it tidies up"


def test_kills(tool, monkeypatch, tmp_path, capsys) -> None:
    run(tool, monkeypatch, "--kills", 3, "--folder", tmp_path)
    printed = capsys.readouterr().out
    assert "12 images with" in printed and "of 3 runs were killed" in printed
    assert "entries lost after they had been seen: 0" in printed
    assert "equal to an uninterrupted run: yes; damage: none" in printed


def test_drawn_similarities(tool) -> None:
    """As the text at the top of the tool says."""
    rng = np.random.default_rng(0)
    people = tool.draw_people(rng, 20_000, 256)
    looks, identities = len(people[0]), len(people[1])
    assert (looks, identities) == (20, 2000)

    def similarity(a: int, b: int) -> float:
        first = tool.draw_embeddings(rng, people, np.full(200, a))
        second = tool.draw_embeddings(rng, people, np.full(200, b))
        return float((first * second).sum(1).mean())

    assert similarity(5, 5) == pytest.approx(0.7, abs=0.1)
    assert similarity(5, 5 + looks) == pytest.approx(0.3, abs=0.15)
    assert similarity(5, 6) == pytest.approx(0.0, abs=0.15)
