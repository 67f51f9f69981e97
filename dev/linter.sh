#!/usr/bin/env bash
# The one lint command: make lint, pre-commit and CI all call it.
#
#   dev/linter.sh            check only
#   dev/linter.sh --fix      also rewrite files where ruff can
#   dev/linter.sh --types    mypy alone (settings in pyproject.toml)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
PY=$VENV/bin/python
[ -x "$PY" ] || PY=python3

if [ "${1:-}" = "--types" ]; then
  exec "$PY" -m mypy
elif [ "${1:-}" = "--fix" ]; then
  "$PY" -m ruff check --fix .
  "$PY" -m ruff format .
else
  echo "[lint] ruff check";  "$PY" -m ruff check .
  echo "[lint] ruff format"; "$PY" -m ruff format --check .
  echo "[lint] mypy"; "$PY" -m mypy
fi
