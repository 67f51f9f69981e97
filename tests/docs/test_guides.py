# SPDX-License-Identifier: Apache-2.0
"""Runs the Python and shell blocks of the guides, so that they stay true."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import packaged
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from json_trees import write_json_set
from programs import run_program_file

from person_search.engine import AtomicCheckpointer
from person_search.search.cli import main as search_main

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ("docs/adding_a_method.md", "docs/adding_a_dataset.md", "docs/predictions_format.md")


SHORTER = {
    "person_search.data.synthetic": "--train-images 12 --test-images 8 --train-ids 4 --test-ids 3 "
    "--size 160 120",
    "train_net.py": "SOLVER.MAX_ITER 2 SOLVER.STEPS (1,) SOLVER.IMS_PER_BATCH 2 "
    "MODEL.PSDIFF.STEPS 1 MODEL.PSDIFF.QUERY_DRAWS 1 TEST.PERSON_SEARCH.SCORE_THRESH 0.0",
    "person-search": "MODEL.PSDIFF.STEPS 1 MODEL.PSDIFF.QUERY_DRAWS 1",
}
"""What is added to commands for the test's sake: small data, a short training."""


FILE_HEADER = re.compile(r"(?:# SPDX[^\n]*\n)?# ((?:projects|configs|tests)/\S+)\n")
"""How a block begins that is a file."""


def blocks_of(path: Path, language: str = "python") -> list[tuple[int, str]]:
    """Returns (line number, code) of every block of the language."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in found]


def write_files_of(guide: Path, root: Path) -> list[str]:
    """Writes the blocks that are files; returns their paths in the repository."""
    names = []
    for language in ("python", "yaml"):
        for _, code in blocks_of(guide, language):
            if header := FILE_HEADER.match(code):
                path = root / header.group(1)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(code, encoding="utf-8")
                names.append(header.group(1))
    return names


@pytest.fixture
def clean_registries():
    """Takes away the package of the guide and the models that it registers."""
    yield
    for name, model in dict(META_ARCH_REGISTRY).items():
        if model.__module__.startswith("myps."):
            META_ARCH_REGISTRY._obj_map.pop(name)
    for name in [name for name in sys.modules if name.split(".")[0] == "myps"]:
        del sys.modules[name]


@pytest.mark.parametrize("guide", GUIDES)
def test_blocks_run_in_order(
    guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_registries: None
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(ROOT / guide)
    assert blocks, f"{guide} has no Python block"
    namespace = {"__name__": Path(guide).stem}
    write_files_of(ROOT / guide, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "projects/MyPS"))
    for line, code in blocks:
        header = FILE_HEADER.match(code)
        if header and header.group(1).startswith("projects/"):
            continue  # imported by others
        # the empty lines make a traceback show the line in the guide
        exec(compile("\n" * line + code, str(ROOT / guide), "exec"), namespace)
        if header:
            run_tests_in(namespace)


def run_tests_in(namespace: dict) -> None:
    """What pytest does with the classes of a file of tests."""
    classes = [x for name, x in namespace.items() if name.startswith("Test")]
    assert classes
    for test in classes:
        names = [name for name in dir(test) if name.startswith("test_")]
        assert len(names) > 8, "those of PersonSearchModelTests"
        for name in names:
            getattr(test(), name)()


def run_command(words: list[str]) -> int:
    """Runs a command of a guide in this process, in the current folder; returns its status."""
    program, *words = words
    if program == "person-search":
        return search_main(words)
    assert program == "python"
    if words[0] == "-m":
        return importlib.import_module(f"{words[1]}.__main__").main(words[2:])
    return run_program_file(*words)


def test_own_data_from_images_to_a_search(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types the commands of the guide, one after the other, in a checkout without data."""
    for name in ("configs", "projects", "tools", "train_net.py"):
        (tmp_path / name).symlink_to(repo_root / name)
    monkeypatch.chdir(tmp_path)
    commands = [
        line
        for _, block in blocks_of(repo_root / "docs/adding_a_dataset.md", "bash")
        for line in block.splitlines()
    ]
    assert len(commands) == 10
    for command in commands:
        words = shlex.split(command)
        for name, more in SHORTER.items():
            words += more.split() if name in words else []
        assert run_command(words) in (0, None), command
    results = json.loads((tmp_path / "output/mine/results.json").read_text())
    assert results["datasets"] == ["mine_test"] and "mAP" in results["search"]
    assert (tmp_path / "output/mine/model_final_ema.pth").is_file()
    assert len(list((tmp_path / "output/mine").glob("search_*.jpg"))) == 3
    assert len(list((tmp_path / "output/mine/data").glob("*.png"))) == 4
    assert list((tmp_path / "output/mine/search").glob("*"))


def test_the_config_of_the_guide_is_that_of_the_file(repo_root: Path) -> None:
    ((_, block),) = blocks_of(repo_root / "docs/adding_a_dataset.md", "yaml")
    shown = yaml.safe_load(block)["DATASETS"]
    path = repo_root / "configs/PSDiff/tiny/psdiff_slim_own_data.yaml"
    assert shown == yaml.safe_load(path.read_text())["DATASETS"]


METHOD = ROOT / "docs" / "adding_a_method.md"
PLACE = {"PROJECTS": "PROJECTS = {\n", "person_search.projects": '"person_search.projects": [\n'}
PLACE["known-first-party"] = "known-first-party = ["
LINE = re.compile(r'^("\S.*,)  # ([\w.]+), in (?:ENTRY_POINTS, "([\w.]+)"|([\w-]+))$', re.M)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which the files and lines of the guide to a method have been typed."""
    for name in ("setup.py", "pyproject.toml", "README.md", "train_net.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "projects").mkdir()
    for name in ("person_search", "projects/DiffPS", "projects/PSDiff", "projects/TwoStage"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    names = write_files_of(METHOD, tmp_path)
    assert [Path(name).name for name in names] == [
        *(
            "__init__.py",
            "config.py",
            "meta_arch.py",
            "test_meta_arch.py",
            "myps_r50_cuhk_sysu.yaml",
        )
    ]
    lines = LINE.findall(METHOD.read_text())
    assert len(lines) == 3
    for line, file, *places in lines:
        place = PLACE["".join(places)]
        text = (tmp_path / file).read_text()
        assert text.count(place) == 1
        end = " " if place.endswith("[") else "\n"
        (tmp_path / file).write_text(text.replace(place, f"{place}{line}{end}"))
    return tmp_path


def test_the_config_of_the_new_method_is_found(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, clean_registries: None
) -> None:
    """As tests/configs does it: keys of all projects in setup.py, registered parts."""
    monkeypatch.setattr(packaged, "ROOT", checkout)
    monkeypatch.syspath_prepend(str(checkout / "projects/MyPS"))
    packaged.setup_literal.cache_clear()
    try:
        cfg = packaged.full_cfg()
    finally:
        packaged.setup_literal.cache_clear()
    cfg.merge_from_file(str(checkout / "configs/MyPS/myps_r50_cuhk_sysu.yaml"))
    check_search_with_weights_of_a_training(cfg.clone(), checkout)
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert cfg.MODEL.WEIGHTS.endswith("torchvision/R-50.pkl") and cfg.INPUT.FORMAT == "RGB"
    assert '["myps", "person_search"' in (checkout / "pyproject.toml").read_text()


def check_search_with_weights_of_a_training(cfg: CfgNode, folder: Path) -> None:
    """A search knows of no training identities."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.REID.NUM_PIDS = 5
    AtomicCheckpointer(build_model(cfg), str(folder)).save("model_final")
    cfg.MODEL.REID.NUM_PIDS = 0
    model, path = build_model(cfg), str(folder / "model_final.pth")
    AtomicCheckpointer(model).load(path, checkpointables=[], need_whole=True)
    assert torch.equal(model.embed.weight, torch.load(path)["model"]["embed.weight"])


@pytest.mark.slow
def test_the_new_method_trains_and_is_evaluated(checkout: Path, child_env: dict[str, str]) -> None:
    """Types the commands of the guide, on own data and without the weights of the network."""
    write_json_set(checkout / "data")
    own = "[('own', 'set.json')]"
    more = ["DATASETS.PERSON_SEARCH_JSON", own, "DATASETS.TRAIN", "('own',)", "DATASETS.TEST"]
    more += ["('own',)", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.IMS_PER_BATCH"]
    more += ["2", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]
    more += ["DATALOADER.NUM_WORKERS", "0", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"]
    paths = [str(checkout), str(checkout / "projects/MyPS")]
    paths += [os.path.abspath(path) for path in sys.path if path]
    env = {**child_env, "PYTHONPATH": os.pathsep.join(paths)}
    env["DETECTRON2_DATASETS"] = str(checkout / "data")
    # what "make env" leaves behind for importlib.metadata
    install = ["setup.py", "-q", "egg_info"]
    (block,) = [code for _, code in blocks_of(METHOD, "bash")]
    first, train, evaluate = block.replace("--num-gpus 1", "--num-gpus 0").splitlines()
    name, _, config = first.partition("=")
    for command in (install, shlex.split(train.replace(f"${name}", config), comments=True)[1:]):
        words = [*command, *more, "MODEL.WEIGHTS", ""] if command is not install else command
        run = subprocess.run(
            [sys.executable, *words], cwd=checkout, env=env, capture_output=True, text=True
        )
        assert run.returncode == 0, f"{words}\n{run.stdout[-2000:]}\n{run.stderr[-3000:]}"
    assert "loss_reid" in run.stdout
    # what the leaf's MODEL.WEIGHTS spares its users
    assert "MODEL.WEIGHTS is empty" in run.stdout and "FREEZE_AT 2 freezes" in run.stdout
    results = json.loads((checkout / "output/myps/results.json").read_text())
    assert results["datasets"] == ["own"] and "mAP" in results["search"]
    weights = shlex.split(evaluate)[-1]
    assert (checkout / weights).is_file(), "what the guide's next command reads"
