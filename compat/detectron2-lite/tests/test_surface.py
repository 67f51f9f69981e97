# SPDX-License-Identifier: Apache-2.0
"""The names that the project imports from Detectron2 exist, with the parameters of the real one.

The imports are read from the sources of the surrounding repository, if there is one. The parameters
were recorded by ``record_surface.py``.
"""

import ast
import importlib
import json
import re
from pathlib import Path

import detectron2
import pytest
import record_surface

IS_LITE = hasattr(detectron2, "__lite__")
RECORDED = json.loads(record_surface.DATA_FILE.read_text())
REPOSITORY = Path(__file__).resolve().parents[3]
SCANNED = ("person_search", "projects", "train_net.py", "tools", "benchmarks", "tests")


def repository_files() -> list[Path]:
    """Returns the Python files of the project, if lite is in its repository."""
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
    """Returns the (module, name) pairs of detectron2 that a source uses."""
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
    """Returns an attribute of a module, or a submodule."""
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
        # not names that lite lacks or inherits from fvcore
        if actual is not None and expected is not None and actual != expected:
            wrong.append(f"{name}({', '.join(actual)}), real ({', '.join(expected)})")
    assert wrong == []


@pytest.mark.skipif(not IS_LITE, reason="the real one has these names")
class TestAbsentNames:
    message = "is not in detectron2-lite; install Detectron2"

    @pytest.mark.parametrize(
        "statement",
        [
            "import detectron2.tracking",
            "import detectron2.utils.visualizer",
            "from detectron2.utils.visualizer import Visualizer",
            "from detectron2.projects import point_rend",
            "from detectron2.evaluation import COCOEvaluator",
            "from detectron2.modeling import RetinaNet, GeneralizedRCNN",
            "from detectron2.modeling.roi_heads import CascadeROIHeads",
            "from detectron2.data.datasets import register_pascal_voc",
            "from detectron2.data.datasets.coco import convert_to_coco_json",
            "from detectron2.engine.hooks import TorchProfiler",
            "from detectron2.config.config import upgrade_config",
        ],
    )
    def test_import(self, statement):
        with pytest.raises(ImportError, match=self.message):
            exec(statement)

    def test_attribute(self):
        engine = importlib.import_module("detectron2.engine")
        assert not hasattr(engine, "no_such_name")
        with pytest.raises(AttributeError, match=self.message):
            _ = engine.TorchProfiler

    def test_model_zoo_can_be_imported(self):
        from detectron2 import model_zoo

        with pytest.raises(AttributeError, match=self.message):
            model_zoo.get_config("x.yaml")

    def test_placeholder_classes_can_be_imported(self):
        from detectron2.structures import RotatedBoxes

        assert not isinstance(3, RotatedBoxes)
        with pytest.raises(ImportError, match=self.message):
            RotatedBoxes([])
        with pytest.raises(ImportError, match=self.message):
            _ = RotatedBoxes.cat

    def test_other_packages_are_not_affected(self):
        with pytest.raises(ModuleNotFoundError, match="no_such_package"):
            importlib.import_module("no_such_package")

    def test_readme_lists_only_absent_names(self):
        """The table of README.md, section "Absent features", names no name that lite has."""
        readme = (record_surface.HERE.parent / "README.md").read_text()
        section = readme.split("## Absent features")[1].split("\n## ")[0]
        names = re.findall(r"`(detectron2\.[\w.]+)`", section)
        assert len(names) > 20
        present = []
        for full_name in names:
            module, _, name = full_name.rpartition(".")
            try:
                found = resolve(module, name)
            except (ImportError, AttributeError):
                continue
            if type(found).__name__ != "_AbsentMeta":
                present.append(full_name)
        assert present == []
