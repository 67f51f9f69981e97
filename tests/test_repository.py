# SPDX-License-Identifier: Apache-2.0
"""Rules for the repository as a whole: licenses, packages, versions, links and commands."""

import re
import shlex
import subprocess
import tomllib
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaged import project_entry_points, setup_literal
from packaging.requirements import Requirement
from packaging.version import Version

import person_search

ROOT = Path(__file__).resolve().parents[1]
LITE = ROOT / "compat" / "detectron2-lite"
WRITING = "*.md"
LATER = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")  # split, so as not to find itself
OLD_WORDS = ("no" + "body", "some" + "body", "wh" + "om", "an" + "ew")


@cache
def tracked(pattern: str = "*") -> list[Path]:
    """Files known to git that match the pattern and are still there."""
    run = subprocess.run(
        ["git", "ls-files", "-z", "--", pattern], cwd=ROOT, capture_output=True, text=True
    )
    if run.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in run.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


# ---- source files ------------------------------------------------------------------------------


def test_python_files_name_their_license() -> None:
    wanted = "# SPDX-License-Identifier: Apache-2.0"
    bad = []
    for path in tracked("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        if wanted not in lines[:2] or (lines[0] != wanted and not lines[0].startswith("#!")):
            bad.append(str(path.relative_to(ROOT)))
    assert not bad, f"first line must be '{wanted}': {bad}"


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("paths of one machine", r"(?<![\w.~>}])/(?:work|root|home|Users)/\w"),
        ("notes to be done later", r"(?<![\"'.])\b(?:" + "|".join(LATER) + r")\b"),
        ("unidiomatic words, see CONTRIBUTING.md", r"(?i)\b(?:" + "|".join(OLD_WORDS) + r")\b"),
    ],
)
def test_files_are_free_of(what: str, pattern: str) -> None:
    found = []
    for path in tracked():
        if path.name != "LICENSE" and path.suffix in {
            ".py",
            ".md",
            ".sh",
            ".yaml",
            ".yml",
            ".toml",
            ".txt",
            ".json",
            "",
        }:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if re.search(pattern, line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, f"{what}:\n" + "\n".join(found)


# ---- packages and versions ---------------------------------------------------------------------


def test_every_folder_with_code_is_a_package() -> None:
    roots = [ROOT / "person_search", *(ROOT / p for p in setup_literal("PROJECTS").values())]
    roots.append(LITE / "src" / "detectron2")
    folders = {path.parent for root in roots for path in root.rglob("*.py")}
    bare = [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").is_file()]
    assert not bare, f"a wheel would leave these out, they have no __init__.py: {bare}"


def test_every_project_is_packaged() -> None:
    listed = {str(Path(folder)) for folder in setup_literal("PROJECTS").values()}
    present = {str(init.parent.relative_to(ROOT)) for init in ROOT.glob("projects/*/*/__init__.py")}
    assert listed == present - {p for p in present if p.endswith("/tests")}
    for name in setup_literal("PROJECTS"):
        assert find_spec(name) is not None, f"{name} is not installed: pip install -e ."


def test_every_project_has_its_config_keys_and_its_imports_sorted() -> None:
    projects = set(setup_literal("PROJECTS"))
    assert set(project_entry_points()) == projects, "ENTRY_POINTS and PROJECTS of setup.py"
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    ours = pyproject["tool"]["ruff"]["lint"]["isort"]["known-first-party"]
    assert set(ours) == {"person_search", *projects}, "known-first-party of pyproject.toml"


def test_versions_agree() -> None:
    version = person_search.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    first = re.search(r"^## \[?(\d+\.\d+\.\d+)\]?", changelog, re.MULTILINE).group(1)
    assert first == version == metadata.version("person-search")


def test_versions_of_the_stand_in_agree() -> None:
    project = tomllib.loads((LITE / "pyproject.toml").read_text())["project"]
    init = (LITE / "src" / "detectron2" / "__init__.py").read_text()
    assert re.search(r'__lite__(?:: str)? = "([^"]+)"', init).group(1) == project["version"]


def read_constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {pin.name.lower(): Version(next(iter(pin.specifier)).version) for pin in pins}


def test_constraints_lie_in_the_ranges_of_setup() -> None:
    requirements = metadata.requires("person-search")
    requirements += tomllib.loads((LITE / "pyproject.toml").read_text())["project"]["dependencies"]
    pins, free = read_constraints(), []
    for requirement in map(Requirement, requirements):
        pin = pins.get(requirement.name.lower())
        if pin is None:
            free.append(requirement.name)
        else:
            assert pin in requirement.specifier, f"{requirement} but constraints.txt has {pin}"
    # tools that are pinned in setup.py, are needed by no test, or come with the interpreter; the
    # extra "all" requires the project itself
    assert set(free) <= {"ruff", "mypy", "pre-commit", "black", "setuptools", "person-search"}


def test_python_versions_agree() -> None:
    assert metadata.metadata("person-search")["Requires-Python"] == ">=3.11"
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["tool"]["ruff"]["target-version"] == "py311"
    assert pyproject["tool"]["mypy"]["python_version"] == "3.11"
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert 'python: ["3.11", "3.12", "3.13"]' in workflow


# ---- writing -----------------------------------------------------------------------------------


def documents() -> list[Path]:
    return [path for path in tracked(WRITING) if LITE not in path.parents]


def commands_of(path: Path) -> list[str]:
    """Returns the command lines of all ``bash`` blocks, without comments, long ones joined."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(parts) for parts in (shlex.split(x, comments=True) for x in lines) if parts]


def missing_of(command: str) -> list[str]:
    """Returns what a command names that is not in the repository."""
    words = command.split()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    missing = []
    for position, word in enumerate(words):
        before = words[position - 1] if position else ""
        looks_ours = re.fullmatch(r"(?:\./)?[\w./-]+\.(?:py|sh|yaml)", word)
        if before == "-m" and word.split(".")[0] in ("person_search", *setup_literal("PROJECTS")):
            missing += [] if find_spec(word) else [word]
        elif before == "make" and re.fullmatch(r"[a-z]+", word):
            missing += [] if word in targets else [f"make {word}"]
        elif looks_ours and not word.startswith(("/", "output/")) and not (ROOT / word).exists():
            missing.append(word)
    return missing


def test_commands_in_documents_exist() -> None:
    bad = {}
    for path in documents():
        missing = [m for command in commands_of(path) for m in missing_of(command)]
        if missing:
            bad[str(path.relative_to(ROOT))] = missing
    assert not bad, f"commands that name what is not there: {bad}"


def test_missing_command_is_noticed() -> None:
    assert missing_of("python tools/no_such_tool.py --config-file configs/none.yaml") == [
        "tools/no_such_tool.py",
        "configs/none.yaml",
    ]
    assert missing_of("make nothing") == ["make nothing"]
    assert missing_of("python -m person_search.utils.collect_env") == []


@pytest.mark.parametrize(
    ("name", "most"),
    [("README.md", 150), ("projects/DiffPS/README.md", 130), ("projects/PSDiff/README.md", 130)],
)
def test_readmes_stay_short(name: str, most: int) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= most


def test_changelog_entries_are_one_short_line() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    long = [line for line in lines if line.startswith("- ") and len(line) > 122]
    assert not long, "at most 120 characters each"
    assert not [line for line in lines if line.startswith("  ")], "one line each"


def test_links_in_documents_lead_somewhere() -> None:
    bad = []
    for path in tracked(WRITING):
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                bad.append(f"{path.relative_to(ROOT)}: {target}")
    assert not bad, "links to nothing:\n" + "\n".join(bad)
