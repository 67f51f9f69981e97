# SPDX-License-Identifier: Apache-2.0
"""Runs the Python and shell blocks of the guides, so that they stay true."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from detectron2.modeling import META_ARCH_REGISTRY

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ("docs/adding_a_method.md", "docs/adding_a_dataset.md", "docs/predictions_format.md")


SHORTER = {
    "person_search.data.synthetic": "--train-images 12 --test-images 8 --train-ids 4 --test-ids 3 "
    "--size 160 120",
    "train_net.py": "SOLVER.MAX_ITER 2 SOLVER.STEPS (1,) SOLVER.IMS_PER_BATCH 2 "
    "MODEL.PSDIFF.STEPS 1 MODEL.PSDIFF.QUERY_DRAWS 1 TEST.PERSON_SEARCH.SCORE_THRESH 0.0",
    "tools/search.py": "MODEL.PSDIFF.STEPS 1 MODEL.PSDIFF.QUERY_DRAWS 1",
}
"""What is added to commands for the test's sake: small data, a short training."""


def blocks_of(path: Path, language: str = "python") -> list[tuple[int, str]]:
    """Returns (line number, code) of every block of the language."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in found]


@pytest.fixture
def clean_registries():
    """Takes away the models that a guide registers."""
    models = set(dict(META_ARCH_REGISTRY))
    yield
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


@pytest.mark.slow
def test_own_data_from_pictures_to_a_search(
    repo_root: Path, tmp_path: Path, child_env: dict[str, str]
) -> None:
    """Types the commands of the guide, one after the other, in a checkout without data."""
    for name in ("configs", "projects", "tools", "train_net.py"):
        (tmp_path / name).symlink_to(repo_root / name)
    paths = [os.path.abspath(path) for path in sys.path if path]
    env = {**child_env, "PYTHONPATH": os.pathsep.join(paths)}
    env.pop("DETECTRON2_DATASETS", None)
    commands = [
        line
        for _, block in blocks_of(repo_root / "docs/adding_a_dataset.md", "bash")
        for line in block.splitlines()
    ]
    assert len(commands) == 10
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "python"
        for name, more in SHORTER.items():
            words += more.split() if name in words else []
        run = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{command}\n{run.stdout[-2000:]}\n{run.stderr[-3000:]}"
    results = json.loads((tmp_path / "output/mine/results.json").read_text())
    assert results["datasets"] == ["mine_test"] and "mAP" in results["search"]
    assert (tmp_path / "output/mine/model_final_ema.pth").is_file()
    assert len(list((tmp_path / "output/mine").glob("search_*.jpg"))) == 3
    assert len(list((tmp_path / "output/mine/data").glob("*.png"))) == 4
    assert list((tmp_path / "output/mine/search").glob("*"))


def test_the_config_of_the_guide_is_that_of_the_file(repo_root: Path) -> None:
    ((_, block),) = blocks_of(repo_root / "docs/adding_a_dataset.md", "yaml")
    shown = yaml.safe_load(block)["DATASETS"]
    path = repo_root / "configs/PSDiff/psdiff_slim_own_data.yaml"
    assert shown == yaml.safe_load(path.read_text())["DATASETS"]
