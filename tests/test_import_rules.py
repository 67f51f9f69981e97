# SPDX-License-Identifier: Apache-2.0
"""Import rules, checked on the syntax trees of all source files.

``train_net.py``, ``tools``, ``tests`` -> projects -> ``person_search`` -> ``detectron2`` -> torch;
never upwards, never between projects. CONTRIBUTING.md gives the reasons.
"""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from packaged import setup_literal

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = setup_literal("PROJECTS")
SOURCE_FOLDERS = ("person_search", "projects", "tools", "benchmarks")

# Part of the core -> parts it may import; itself is always allowed. "search" (the product) and
# "data.synthetic" (the painter) are imported by no part of the core.
CORE_MAY_IMPORT = {
    "schema": set(),
    "interface": set(),
    "utils": set(),
    "config": {"schema", "utils"},
    "data": {"schema", "utils", "config"},
    "data.synthetic": {"schema", "utils", "config", "data", "programs", "synthetic_config"},
    "modeling": {"schema", "utils", "config"},
    "evaluation": {"schema", "utils", "config", "data"},
    "vis": {"schema", "utils", "config", "data", "evaluation"},
    "engine": {
        *("schema", "utils", "config", "data", "modeling", "evaluation", "vis"),
        *("interface", "cli"),
    },
    "search": {
        *("schema", "utils", "config", "data", "modeling", "evaluation", "vis", "engine"),
        "cli",
    },
    "cli": {"utils", "engine"},
    "model_zoo": {"config", "utils"},
    "programs": set(),
    "synthetic_config": set(),
    "train": {"utils", "config", "data", "engine", "cli"},
    "training_series": {"cli"},
    "testing": {"schema", "utils", "config", "data", "modeling", "evaluation", "interface"},
}
# documented under their own names although their package exports some of the same names
PUBLIC_MODULES = ("detectron2.engine.hooks",)
PROJECTS_MAY_IMPORT = {
    *("schema", "utils", "config", "data", "data.synthetic", "evaluation", "modeling", "vis"),
    "synthetic_config",
}


@dataclass(frozen=True)
class Import:
    """One imported module or name: ``from module import name`` or ``import module``."""

    file: str
    line: int
    module: str
    name: str | None
    at_module_level: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.module}" + (f".{self.name}" if self.name else "")


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def source_files(*folders: str) -> list[Path]:
    files = [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]
    return files + ([ROOT / "train_net.py"] if set(folders) == set(SOURCE_FOLDERS) else [])


def full_module(path: Path, node: ast.ImportFrom) -> str:
    """Spells out a relative import; an import in full is returned as it is."""
    if node.level == 0:
        return node.module
    folder = path.parents[node.level - 1]
    parts = [node.module] if node.module else []
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts)


def imports_of(path: Path) -> Iterator[Import]:
    relative = path.relative_to(ROOT).as_posix()
    tree = parse(path)
    # inside a function, or under "if TYPE_CHECKING:", which never runs
    inside = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(outer, ast.If) and ast.unparse(outer.test) == "TYPE_CHECKING")
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        outer = id(node) not in inside
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(relative, node.lineno, alias.name, None, outer)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(relative, node.lineno, full_module(path, node), alias.name, outer)


def all_imports(*folders: str) -> list[Import]:
    return [found for path in source_files(*folders) for found in imports_of(path)]


def core_part(module: str, name: str | None = None) -> str | None:
    """Returns e.g. "data" for ``person_search.data.x``, None for names of the package itself."""
    parts = [*module.split("."), *([name] if name else [])]
    if ".".join(parts[1:3]) in CORE_MAY_IMPORT:
        return ".".join(parts[1:3])
    return parts[1] if len(parts) > 1 and parts[1] in CORE_MAY_IMPORT else None


def assert_none(broken: list[Import], rule: str) -> None:
    assert not broken, rule + ":\n" + "\n".join(map(str, broken))


def test_imports_are_found() -> None:
    found = all_imports(*SOURCE_FOLDERS)
    assert {"torch", "detectron2", "person_search"} <= {i.top for i in found}


def test_every_part_of_the_core_has_a_rule() -> None:
    core = ROOT / "person_search"
    files = [path.relative_to(core) for path in core.rglob("*.py")]
    parts = {Path(path.parts[0]).stem for path in files} - {"__init__", "__main__"}
    parts |= {"data.synthetic"}
    assert parts == set(CORE_MAY_IMPORT), "CORE_MAY_IMPORT lists the parts of person_search"
    apart = {"search", "data.synthetic"}
    assert not apart & set().union(*CORE_MAY_IMPORT.values()), f"the core does not import {apart}"


@pytest.mark.parametrize("part", sorted(CORE_MAY_IMPORT))
def test_core_imports_downwards(part: str) -> None:
    allowed = CORE_MAY_IMPORT[part] | {part}
    mine = [
        found
        for found in all_imports("person_search")
        if core_part(found.file.removesuffix(".py").replace("/", ".")) == part
    ]
    assert mine
    broken = [i for i in mine if i.top in PROJECTS]
    broken += [
        i
        for i in mine
        if i.top == "person_search" and core_part(i.module, i.name) not in allowed | {None}
    ]
    assert_none(broken, f"person_search.{part} may import {sorted(allowed)} and no project")


@pytest.mark.parametrize("project", sorted(PROJECTS))
def test_projects_import_neither_engine_nor_each_other(project: str) -> None:
    mine = all_imports(PROJECTS[project])
    assert_none(
        [i for i in mine if i.top in set(PROJECTS) - {project}], "projects do not import each other"
    )
    broken = [
        i
        for i in mine
        if i.top == "person_search"
        and core_part(i.module, i.name) not in PROJECTS_MAY_IMPORT | {None}
    ]
    assert_none(broken, f"a project may import {sorted(PROJECTS_MAY_IMPORT)} of the core")


def test_metrics_need_numpy_only() -> None:
    """Directly and through the modules of the core that they import."""
    allowed = {"numpy", "scipy"} | set(sys.stdlib_module_names)
    todo = sorted((ROOT / "person_search" / "evaluation").glob("*_metrics.py"))
    assert todo
    seen, broken = set(todo), []
    while todo:
        for found in imports_of(todo.pop()):
            path = ROOT / (found.module.replace(".", "/") + ".py")
            if found.top == "person_search" and path.is_file():
                todo += [path] if path not in seen and found.at_module_level else []
                seen.add(path)
            elif found.top not in allowed:
                broken.append(found)
    assert_none(broken, "evaluation/*_metrics.py and what they import need NumPy and SciPy only")


def test_diffusers_and_transformers_are_imported_lazily() -> None:
    """``transformers`` and the models of ``diffusers`` are for diffps; psdiff takes a scheduler."""
    found = [i for i in all_imports(*SOURCE_FOLDERS) if i.top in ("diffusers", "transformers")]
    broken = [i for i in found if i.at_module_level]
    broken += [i for i in found if not i.file.startswith(("projects/", "benchmarks/"))]
    broken += [i for i in found if i.top == "transformers" and "diffps" not in i.file]
    assert_none(broken, "diffusers and transformers only in projects and only inside functions")


def test_stand_in_is_independent() -> None:
    found = all_imports("compat/detectron2-lite/src")
    assert_none(
        [i for i in found if i.top == "person_search" or i.top in PROJECTS],
        "compat imports nothing of this project",
    )


def test_sys_path_is_not_edited() -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in source_files(*SOURCE_FOLDERS)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.path", "site.addsitedir")
    ]
    assert not broken, f"install the package instead of editing sys.path: {broken}"


def test_no_import_fallbacks() -> None:
    broken = []
    for path in source_files(*SOURCE_FOLDERS):
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.Try):
                continue
            caught = {ast.unparse(h.type) for h in node.handlers if h.type is not None}
            reraises = all(isinstance(h.body[-1], ast.Raise) for h in node.handlers)
            imports = any(isinstance(s, ast.Import | ast.ImportFrom) for s in node.body)
            if imports and caught & {"ImportError", "ModuleNotFoundError"} and not reraises:
                broken.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not broken, f"an import either works or raises, it never falls back: {broken}"


def detectron2_imports() -> list[Import]:
    return [i for i in all_imports(*SOURCE_FOLDERS) if i.top == "detectron2"]


def test_every_detectron2_name_exists_in_this_backend() -> None:
    missing = []
    for found in detectron2_imports():
        module = importlib.import_module(found.module)
        if found.name is not None and not hasattr(module, found.name):
            try:
                importlib.import_module(f"{found.module}.{found.name}")
            except ModuleNotFoundError:
                missing.append(found)
    assert_none(missing, "not in the Detectron2 in use")


def test_detectron2_names_are_public() -> None:
    broken = []
    for found in detectron2_imports():
        parts = [*found.module.split("."), *([found.name] if found.name else [])]
        if any(part.startswith("_") for part in parts):
            broken.append(found)
            continue
        # detectron2.data.catalog.X where detectron2.data exports the same X
        package = ".".join(found.module.split(".")[:2])
        if found.name and found.module not in (package, *PUBLIC_MODULES):
            exported = getattr(importlib.import_module(package), found.name, None)
            if exported is not None and exported is getattr(
                importlib.import_module(found.module), found.name, None
            ):
                broken.append(found)
    assert_none(broken, "import the name from the package that exports it, and no private name")


def test_importing_a_package_needs_no_data_and_loads_no_diffusers(tmp_path: Path) -> None:
    """No weights, data set, GPU or network; and PSDiff users need no diffusers."""
    code = (
        "import importlib, sys\n"
        "for package in sys.argv[1:]:\n"
        "    importlib.import_module(package)\n"
        "    loaded = {'diffusers', 'transformers'} & set(sys.modules)\n"
        "    assert not loaded, f'the import of {package} loads {loaded}'"
    )
    packages = ["person_search", *sorted(PROJECTS)]  # one process: none imports another
    nowhere = str(tmp_path / "nowhere")
    env = {**os.environ, "DETECTRON2_DATASETS": nowhere, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-c", code, *packages],
        env=env, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.iterdir()) == [], "the import wrote files"
