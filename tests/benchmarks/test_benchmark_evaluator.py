# SPDX-License-Identifier: Apache-2.0
"""benchmarks/benchmark_evaluator.py at a hundredth of its size, and the files that it writes."""

import re
from pathlib import Path

import benchmark_evaluator as tool
import numpy as np
import pytest
from scipy.io import loadmat
from simulation import (
    listed_protocols,
    open_protocols,
    simulate_cuhk_sysu,
    simulate_prw,
)

from person_search.data.datasets.cuhk_sysu_files import read_protocol
from person_search.evaluation import evaluate_search


@pytest.mark.parametrize("part", ["cuhk_sysu", "prw", "conversion"])
def test_each_part_prints_its_results(part, capsys) -> None:
    arguments = ["--parts", part, "--shrink", "100", "--dim", "16", "--plain-queries", "4"]
    assert tool.main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"{part}: peak memory +\d+ MiB", printed)
    if part == "conversion":
        assert "MiB compressed" in printed
        assert "times as fast as the conversion" in printed
        return
    assert f"{part}: all but the optional" in printed
    assert "times as fast as plain loops" in printed
    assert float(re.search(r"difference of an AP (\S+)", printed)[1]) < 1e-12


@pytest.mark.parametrize(
    ("option", "value"), [("--dim", 0), ("--plain-queries", 0), ("--shrink", 101), ("--seed", -1)]
)
def test_values_out_of_range_are_refused(option, value, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        tool.main([option, str(value)])
    assert caught.value.code == 2
    assert f"{option} is {value}; it must be" in capsys.readouterr().err


def test_the_written_file_is_a_matlab_file(tmp_path: Path) -> None:
    path = tmp_path / "annotation" / "test" / "train_test" / "TestG9.mat"
    path.parent.mkdir(parents=True)
    tool.write_protocol_file(path, "TestG9", 3, 9)
    table = loadmat(path)["TestG9"]
    assert table.shape == (1, 3) and table.dtype.names == ("Query", "Gallery")
    query, gallery = table[0, 2]["Query"], table[0, 2]["Gallery"]
    assert query.shape == (1, 1) and gallery.shape == (1, 9)
    assert query.dtype.names == ("imname", "idlocate", "ishard", "idname")
    assert query[0, 0]["idlocate"].dtype == np.uint8 and query[0, 0]["idlocate"].shape == (1, 4)
    assert gallery[0, 8]["idlocate"].shape == (1, 0)
    arrays = read_protocol(tmp_path, "g9")
    names = [gallery[0, i]["imname"][0] for i in range(9)]
    assert arrays["names"][arrays["gallery"][2]].tolist() == names
    assert arrays["positive_query"].tolist() == [0, 0, 1, 1, 2, 2]
    assert arrays["query_boxes"].tolist() == [[9, 8, 70, 180]] * 3


def test_random_sets_have_the_structure_of_the_real_ones() -> None:
    data = simulate_cuhk_sysu(num_images=200, num_boxes=1200, num_queries=60, dim=8)
    assert len(data.boxes) == 1200 and len(data.query_rows) == 60
    assert data.pids[data.query_rows].tolist() == list(range(60)), "one query per identity"
    small, large = listed_protocols(data, {"small": 20, "large": 150}, {})
    for little, big in zip(small.gallery, large.gallery, strict=True):
        assert set(little.tolist()) <= set(big.tolist()) and len(set(big.tolist())) == 150
    assert set(small.positive_query.tolist()) == set(range(60)), "each query has a match"
    few, many = evaluate_search(data.predictions, [small, large])
    assert 0 < many.ap.mean() <= few.ap.mean() < 1
    assert (many.ap <= few.ap + 1e-12).all()

    data = simulate_prw(
        num_images=120, num_boxes=500, num_labeled=300, num_pids=12, num_queries=30, dim=8
    )
    everything, others = open_protocols(data)
    assert len(others.positive_query) < len(everything.positive_query)
    assert (everything.excluded[:, 0] == [q.image_id for q in everything.queries]).all()
    (scores,) = evaluate_search(data.predictions, [everything])
    assert 0 < scores.ap.mean() < 1
