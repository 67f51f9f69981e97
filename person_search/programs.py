# SPDX-License-Identifier: Apache-2.0
"""Runs the general tools: ``person-search-tools NAME ...``, or in a checkout ``tools/NAME.py ...``.

person-search-tools                        lists the tools
person-search-tools check_dataset --help
"""

import ast
import difflib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path


def tools_folder() -> Path:
    """Returns the folder of the tools: inside the package in a wheel, else of the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "tools"
    return installed if installed.is_dir() else package.parent / "tools"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a tool, or lists all; returns the exit status."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    tools = {path.stem: path for path in sorted(tools_folder().glob("*.py"))}
    if name in ("-h", "--help"):
        print("usage: person-search-tools NAME ...\n")
        for tool, path in tools.items():
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            print(f"  {tool:22}{text.splitlines()[0]}")
        return 0
    if name not in tools:
        near = difflib.get_close_matches(name, tools, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(f"error: there is no tool {name!r}.{hint} Available: {', '.join(tools)}.",
              file=sys.stderr)  # fmt: skip
        return 2
    spec = importlib.util.spec_from_file_location(name, tools[name])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, sys.argv = sys.argv, [f"person-search-tools {name}", *rest]  # for the usage
    try:
        return module.main()
    finally:
        sys.argv = before


if __name__ == "__main__":
    sys.exit(main())
