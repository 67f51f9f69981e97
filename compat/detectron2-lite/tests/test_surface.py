# SPDX-License-Identifier: Apache-2.0
"""What the project takes from Detectron2 exists in the backend, with the real one's parameters.

In a checkout of the whole repository, the sources are read for imports of detectron2; elsewhere
that part is skipped. The parameters were recorded by `record_surface.py`.
"""

import ast
import importlib
import json
from pathlib import Path

import detectron2
import pytest
import record_surface

IS_LITE = hasattr(detectron2, "__lite__")
RECORDED = json.loads(record_surface.DATA_FILE.read_text())
REPOSITORY = Path(__file__).resolve().parents[3]
SCANNED = ("person_search", "projects", "train_net.py", "tools", "tests")


def repository_files() -> list[Path]:
    """Python files of the project around lite; none in an isolated checkout of lite."""
    roots = [REPOSITORY / name for name in SCANNED]
    files = [root for root in roots if root.suffix == ".py" and root.is_file()]
    for root in roots:
        if root.is_dir():
            files += sorted(root.rglob("*.py"))
    return files


def _is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def used_names(source: str) -> set[tuple[str, str]]:
    """(module, name) pairs of detectron2 that a source imports or reads from imported modules."""
    tree = ast.parse(source)
    used, aliases = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "detectron2":
                    used.add((alias.name, ""))
                    if alias.asname:
                        aliases[alias.asname] = alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            if (node.module or "").split(".")[0] == "detectron2":
                for alias in node.names:
                    used.add((node.module, alias.name))
                    full_name = f"{node.module}.{alias.name}"
                    if alias.name.islower() or alias.asname == "T":
                        aliases[alias.asname or alias.name] = full_name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = aliases.get(node.value.id)
            if module and _is_module(module):
                used.add((module, node.attr))
    return used


def resolve(module_name: str, name: str):
    """Import as Python does: an attribute of the module, or else a submodule."""
    module = importlib.import_module(module_name)
    if not name or hasattr(module, name):
        return getattr(module, name) if name else module
    return importlib.import_module(f"{module_name}.{name}")


def test_scan_finds_imports_and_uses_of_modules():
    source = (
        "import detectron2.utils.comm as comm\n"
        "from detectron2.data import transforms as T\n"
        "from detectron2.config import get_cfg\n"
        "comm.get_rank(); T.ResizeShortestEdge; get_cfg().MODEL\n"
    )
    assert used_names(source) == {
        ("detectron2.utils.comm", ""),
        ("detectron2.utils.comm", "get_rank"),
        ("detectron2.data", "transforms"),
        ("detectron2.data.transforms", "ResizeShortestEdge"),
        ("detectron2.config", "get_cfg"),
    }


def test_everything_the_project_uses_exists():
    files = repository_files()
    if not files:
        pytest.skip("not inside the repository of the project")
    missing = []
    for path in files:
        for module, name in sorted(used_names(path.read_text())):
            try:
                resolve(module, name)
            except (ImportError, AttributeError) as e:
                missing.append(f"{path.relative_to(REPOSITORY)}: {module} {name}: {e}")
    assert missing == []


@pytest.mark.skipif(not IS_LITE, reason="the real one is what was recorded")
@pytest.mark.parametrize("module_name", sorted(RECORDED))
def test_same_parameters_as_the_real_one(module_name):
    surface = record_surface.public_surface(module_name)
    wrong = []
    for name, expected in RECORDED[module_name].items():
        actual = surface.get(name)
        # What lite lacks, or inherits from fvcore, is no matter of this test.
        if actual is not None and expected is not None and actual != expected:
            wrong.append(f"{name}({', '.join(actual)}), real ({', '.join(expected)})")
    assert wrong == []


def test_absent_names_say_where_to_find_them():
    if not IS_LITE:
        pytest.skip("nothing is absent from the real one")
    with pytest.raises(ImportError, match="install Detectron2"):
        from detectron2.evaluation import PascalVOCDetectionEvaluator  # noqa: F401
    engine = importlib.import_module("detectron2.engine")
    assert not hasattr(engine, "no_such_name")
