# SPDX-License-Identifier: Apache-2.0
"""Files named by configs are shipped, downloaded, or written by a documented command."""

import re
import shlex
import subprocess
from pathlib import Path
from string import Template

import pytest
from detectron2.config import CfgNode
from programs import load_program

from person_search.config import default_config, merge_into

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "projects/PSDiff/README.md", "docs/adding_a_dataset.md")
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs" / "PSDiff").rglob("*.yaml")
    if not path.name.startswith("Base-")
)
DOWNLOADED = ("detectron2://", "weights/")  # what Base-PSDiff-SwinB.yaml says the origin of


def load(config: str, overrides: list[str] | None = None) -> CfgNode:
    cfg = default_config()
    merge_into(cfg, ROOT / config, overrides or [])
    return cfg


def commands() -> set[str]:
    """Python commands of the documents, the demo, the trends and the paper's tables."""
    found: set[str] = set()
    for document in DOCUMENTS:
        for block in re.findall(r"^```bash\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S):
            text = block.replace("\\\n", " ")
            lines = re.findall(r"^[A-Z]=.*$", text, re.M)
            variables = dict(word.split("=", 1) for line in lines for word in shlex.split(line))
            for command in re.findall(r"^python (.*)$", text, re.M):
                found.add(Template(command).safe_substitute(variables))
    demo = load_program("tools/demo.py")
    trends = load_program("projects/PSDiff/tools/reproduce_trends.py")
    tables = load_program("projects/PSDiff/tools/paper_tables.py")

    class Noted(demo.Steps):
        def run(self, name, title, command, done=None):
            found.add(command)

    demo.run_steps(Noted(Path("datasets")), Path("output/demo"), Path("datasets"))
    steps = tables.Commands(Path("output/paper"), 4).of_tables(list(tables.NUMBERS))
    found |= {step.command.removeprefix("python ") for step in steps}
    # as they are by default, and relative to the repository
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        runner = trends.Runner(Path("output/trends"), [])
        patch.setattr(runner, "command", lambda name, command: found.add(command))
        runner.prepare()
    return {command.replace(f"{ROOT}/", "") for command in found}


def written_by(command: str) -> set[str]:
    """The teacher's weights or embeddings that a command writes."""
    script, *words = shlex.split(command, comments=True)
    if script not in (
        f"projects/PSDiff/tools/{x}.py" for x in ("train_teacher", "compute_embeddings")
    ):
        return set()
    config = words[words.index("--config-file") + 1]
    keys = [i for i, word in enumerate(words) if re.match(r"[A-Z]+(_DIR|\.)", word)]
    first = keys[0] if keys else len(words)
    cfg = load(config, words[first:])
    if script.endswith("train_teacher.py"):
        return {f"{cfg.OUTPUT_DIR}/teacher.safetensors"}
    return {cfg.MODEL.PSDIFF.TEACHER.EMBEDDINGS}


@pytest.fixture(scope="module")
def available() -> set[str]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False
    )
    shipped = set(listed.stdout.splitlines())
    if not shipped:
        pytest.skip("not a git checkout")
    folder = "output/real_footage"  # of benchmarks/run_real_footage.py, by protocol
    made = {f"{folder}/start.safetensors", f"{folder}/teacher_identity/embeddings.safetensors"}
    return shipped.union(made, *(written_by(command) for command in commands()))


@pytest.mark.parametrize("config", FILES)
def test_files_of_a_config_exist_or_are_made(config: str, available: set[str]) -> None:
    cfg = load(config)
    teacher = cfg.MODEL.PSDIFF.TEACHER
    assert teacher.EMBEDDINGS in available
    for path in (cfg.MODEL.WEIGHTS, teacher.WEIGHTS):
        path = path.removeprefix(f"{ROOT}/")  # shipped weights are found from other folders
        assert not path or path in available or path.startswith(DOWNLOADED), path


def test_only_written_files_count(available: set[str]) -> None:
    assert "output/demo/embeddings.safetensors" in available
    assert "output/demo/teacher/embeddings.safetensors" not in available
    assert "output/teacher/hhcl_prw_train/teacher.safetensors" in available
