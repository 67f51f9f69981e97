# SPDX-License-Identifier: Apache-2.0
"""Runs the Python blocks of the guides, so that they stay true."""

import re
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ("docs/adding_a_method.md", "docs/adding_a_dataset.md")


def blocks_of(path: Path) -> list[tuple[int, str]]:
    """Returns (line number, code) of every ``python`` block."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in found]


@pytest.fixture
def clean_registries():
    """Takes away what a guide registers."""
    names, models = set(DatasetCatalog.list()), set(dict(META_ARCH_REGISTRY))
    yield
    for name in set(DatasetCatalog.list()) - names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    for name in set(dict(META_ARCH_REGISTRY)) - models:
        META_ARCH_REGISTRY._obj_map.pop(name)


@pytest.mark.parametrize("guide", GUIDES)
def test_blocks_run_in_order(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_registries: None
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(ROOT / guide)
    assert blocks, f"{guide} has no Python block"
    namespace = {"__name__": Path(guide).stem}
    for line, code in blocks:
        # the empty lines make a traceback show the line in the guide
        exec(compile("\n" * line + code, str(ROOT / guide), "exec"), namespace)
