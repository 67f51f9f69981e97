# SPDX-License-Identifier: Apache-2.0
"""The readers of the real formats on generated data, quirks included."""

from pathlib import Path

import pytest

from person_search.data import (
    load_cuhk_sysu,
    load_cuhk_sysu_protocol,
    load_prw,
    load_prw_protocol,
)
from person_search.data.datasets.check import check_dataset
from person_search.data.synthetic import SyntheticConfig, write_cuhk_sysu, write_prw
from person_search.testing import PersonSearchDatasetTests

OPTIONS = SyntheticConfig(
    train_images=10,
    test_images=8,
    train_ids=5,
    test_ids=4,
    width=128,
    height=96,
    gallery_sizes=(5, 7),
)
PROTOCOLS = ("g5", "g7", "occlusion", "low_resolution")


@pytest.fixture(scope="module")
def cuhk_sysu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "CUHK-SYSU"
    write_cuhk_sysu(root, OPTIONS, progress=False)
    return root


@pytest.fixture(scope="module")
def prw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "PRW"
    write_prw(root, OPTIONS, progress=False)
    return root


class TestSyntheticCuhkSysu(PersonSearchDatasetTests):
    box_tolerance = 1.0

    @pytest.fixture(autouse=True)
    def _root(self, cuhk_sysu: Path) -> None:
        self.root = cuhk_sysu

    def load(self, split):
        return load_cuhk_sysu(self.root, split)

    def load_protocols(self):
        return [load_cuhk_sysu_protocol(self.root, name) for name in PROTOCOLS]


class TestSyntheticPrw(PersonSearchDatasetTests):
    @pytest.fixture(autouse=True)
    def _root(self, prw: Path) -> None:
        self.root = prw

    def load(self, split):
        return load_prw(self.root, split)

    def load_protocols(self):
        return [load_prw_protocol(self.root, name) for name in ("all", "multi_view")]


@pytest.mark.parametrize("format_name", ["cuhk_sysu", "prw"])
def test_the_check_passes_and_finds_the_irregularities(format_name: str, cuhk_sysu, prw) -> None:
    root = {"cuhk_sysu": cuhk_sysu, "prw": prw}[format_name]
    report = check_dataset(format_name, root, decode=True)
    assert report.errors == []
    kinds = {item.kind for item in report.irregularities}
    expected = {
        "cuhk_sysu": {"zero_size_box", "twice_in_image", "listed_twice", "own_image"},
        "prw": {"box_clipped", "twice_in_image"},
    }
    assert expected[format_name] <= kinds
    counts = report.found
    assert counts["train images"] == 10 and counts["test images"] == 8
    assert counts["train identities"] == 5 and counts["test identities"] == 4
