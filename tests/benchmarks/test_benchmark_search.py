# SPDX-License-Identifier: Apache-2.0
"""benchmarks/benchmark_search.py at a tiny size: its results, and the comparison after kills."""

import re

import benchmark_search as tool
import numpy as np
import pytest


def run(*words: object) -> int:
    return tool.main(list(map(str, words)))


def test_results(tmp_path, capsys) -> None:
    pytest.importorskip("faiss", reason="the approximate index needs FAISS")
    sizes = ("--persons", 3000, "--dim", 16, "--queries", 4)
    assert run(*sizes, "--folder", tmp_path) == 0
    printed = capsys.readouterr().out
    for text in (
        r"memory, exact: \d+\.\d+ times the vectors",
        r"exact search: p50 [\d.]+ ms \([\d.]+\), p95",
        r"FAISS flat index: p50",
        r"exact search takes [\d.]+ times as long",
        r"memory, approximate: [\d.]+ times",
        r"approximate search is [\d.]+ times as fast",
    ):
        assert re.search(text, printed), text
    assert float(re.search(r"recall of the top 10: ([\d.]+)", printed).group(1)) >= 0.9
    assert list(tmp_path.iterdir()) == [], "the temporary gallery is removed"


def test_kills(tmp_path, capsys) -> None:
    assert run("--kills", 3, "--folder", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "12 images with" in printed and "of 3 runs were killed" in printed
    assert "entries lost after they were visible: 0" in printed
    assert "equal to an uninterrupted run: yes; damage: none" in printed


def test_similarities_are_the_documented_ones() -> None:
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


@pytest.mark.parametrize(("option", "value"), [("--persons", 0), ("--queries", 0), ("--kills", -1)])
def test_values_out_of_range_are_refused(option, value, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        run(option, value)
    assert caught.value.code == 2
    assert f"{option} is {value}; it must be at least" in capsys.readouterr().err
