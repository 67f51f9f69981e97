#!/usr/bin/env bash
# Runs the test suite with the lowest or the highest versions that setup.py allows.
#
#   dev/check_versions.sh lowest [pytest arguments]     e.g. tests/projects/diffps
#   dev/check_versions.sh highest [pytest arguments]
#
# The environment is separate: .venv-lowest or .venv-highest. torch and torchvision keep the versions
# of constraints.txt unless TORCH=lowest or TORCH=highest, since they are the large download.
# Environment: PYTHON (default python3), TORCH (default constraints).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '[versions] %s\n' "$*"; }
fail() { printf '[versions] error: %s\n' "$*" >&2; exit 1; }

end=${1:-}
case $end in
  lowest | highest) shift ;;
  *) fail "name one end of the ranges: lowest or highest" ;;
esac
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-constraints}
VENV=.venv-$end
export VENV

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" - "$end" "$TORCH" > "$VENV/constraints.txt" << 'PY'
"""Prints pip constraints: the lower bounds of setup.py, or for the highest end torch's pins only."""
import ast
import re
import sys
from pathlib import Path

end, torch = sys.argv[1:]
large = ("torch", "torchvision")
pins = dict(
    line.split("==") for line in Path("constraints.txt").read_text().splitlines() if "==" in line
)
tree = ast.parse(Path("setup.py").read_text(encoding="utf-8"))
extras = next(ast.literal_eval(x.value) for x in tree.body
              if isinstance(x, ast.Assign) and x.targets[0].id == "EXTRAS")
keywords = {k.arg: k.value for k in tree.body[-1].value.keywords}
ranges = ast.literal_eval(keywords["install_requires"])
ranges += [x for name, extra in extras.items() if name not in ("dev", "real") for x in extra]
for text in sorted(set(ranges)):
    bound = re.match(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", text)
    if not bound:
        continue
    name, lowest = bound.groups()
    wanted = torch if name in large else end
    if wanted == "lowest":
        print(f"{name}=={lowest}.*")
    elif wanted == "constraints" and name in pins:
        print(f"{name}=={pins[name]}")
PY
say "constraints of the $end versions:"
sed 's/^/[versions]   /' "$VENV/constraints.txt"
"$VENV/bin/python" -m pip install --no-compile --disable-pip-version-check --upgrade \
  -c "$VENV/constraints.txt" -e ".[dev]" -e compat/detectron2-lite
"$VENV/bin/python" -m pip list --disable-pip-version-check > "$VENV/versions.txt"
dev/run_tests.sh -q "$@"
say "passed with the $end versions; they are listed in $VENV/versions.txt"
