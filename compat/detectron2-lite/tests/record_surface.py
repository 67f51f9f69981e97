# SPDX-License-Identifier: Apache-2.0
"""Records the parameters of the public functions, classes and methods of the real Detectron2.

Run it with the real package:

    PYTHONPATH=<checkout of Detectron2> python record_surface.py

It writes data/surface.json: for each module of lite, the parameters of the public functions, of the
constructors and methods of classes, and the members of enumerations.
"""

import importlib
import inspect
import json
import warnings
from enum import EnumMeta
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA_FILE = HERE / "data" / "surface.json"
SOURCES = HERE.parent / "src"


def lite_modules() -> list[str]:
    """Returns the dotted names of all modules of lite."""
    names = []
    for path in sorted(SOURCES.glob("detectron2/**/*.py")):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def parameters(function) -> list[str] | None:
    """Returns the names of the parameters with * and **; None if they are unknown."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    stars = {
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    return [stars.get(p.kind, "") + p.name for p in signature.parameters.values()]


def public_surface(module_name: str) -> dict[str, list[str] | None]:
    """Returns the parameters of the public names of a module; methods are named Class.method."""
    module = importlib.import_module(module_name)
    surface = {}
    for name, member in vars(module).items():
        defined_in = getattr(member, "__module__", None) or ""
        if name.startswith("_") or not callable(member) or not defined_in.startswith("detectron2"):
            continue
        if type(member).__name__ == "_AbsentMeta":
            continue  # placeholder of an absent class
        if isinstance(member, EnumMeta):
            surface[name] = sorted(member.__members__)  # how it is called depends on the Python
        else:
            surface[name] = parameters(member)
        if not inspect.isclass(member):
            continue
        for method_name, method in vars(member).items():
            if isinstance(method, classmethod | staticmethod):
                method = method.__func__
            if not method_name.startswith("_") and inspect.isfunction(method):
                surface[f"{name}.{method_name}"] = parameters(method)
    return surface


def main():
    """Writes the recording."""
    import detectron2

    assert not hasattr(detectron2, "__lite__"), "Record with the real Detectron2 on PYTHONPATH"
    warnings.simplefilter("ignore")
    recorded = {}
    for name in lite_modules():
        try:
            recorded[name] = public_surface(name)
        except ImportError:
            continue  # a module that only lite has, or that needs a compiled extension
    lines = [f"{json.dumps(name)}: {json.dumps(surface)}" for name, surface in recorded.items()]
    DATA_FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
