#!/usr/bin/env bash
# Builds the wheels, installs them into a clean environment and uses them from another folder.
# Environment: PYTHON (default python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
ROOT=$PWD
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

step() { printf '[packaging] %s\n' "$*"; }

step "building wheels"
"$PYTHON" -m venv "$WORK/venv"
"$WORK/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$WORK/wheels" . ./compat/detectron2-lite
"$PYTHON" - "$WORK/wheels" <<'PY'
import ast
import sys
import zipfile
from pathlib import Path

lines = {ast.unparse(x.targets[0]): x.value
         for x in ast.parse(Path("setup.py").read_text()).body if isinstance(x, ast.Assign)}
projects = set(ast.literal_eval(lines["PROJECTS"]))
for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    tops = {top for top in tops if not top.endswith(".dist-info")}
    want = {"detectron2"} if "lite" in wheel.name else {"person_search", *projects}
    if tops != want:
        sys.exit(f"{wheel.name} holds {sorted(tops)}, expected {sorted(want)}")
    print(f"[packaging]   {wheel.name}: {', '.join(sorted(tops))}")
PY

step "installing them into a clean environment"
"$WORK/venv/bin/pip" install --quiet -c constraints.txt torch torchvision
"$WORK/venv/bin/pip" install --quiet -c constraints.txt "$WORK"/wheels/*.whl

step "importing from another folder"
cd "$WORK"
"$WORK/venv/bin/python" -c '
import person_search
from person_search.config import default_config
from person_search.utils import check_backend
default_config()  # imports every project
print("[packaging]  ", check_backend(), person_search.__file__)
assert "site-packages" in person_search.__file__, "this is not the installed wheel"
'
"$WORK/venv/bin/python" -m person_search.utils.collect_env > /dev/null
step "train_net.py --help"
"$WORK/venv/bin/python" "$ROOT/train_net.py" --help > /dev/null
step "all fine"
