#!/usr/bin/env bash
# Runs the test suite in the environment of dev/setup_env.sh --dev.
#
#   dev/run_tests.sh                                   everything, with detectron2-lite
#   dev/run_tests.sh tests/data -k prw                 further arguments go to pytest
#   dev/run_tests.sh --coverage                        also fails below the coverage of pyproject.toml
#                                                      (a third slower)
#   dev/run_tests.sh --with-detectron2 <checkout>      project tests on the real Detectron2: a source
#                                                      checkout goes first on PYTHONPATH, no compiler
#                                                      (dev/setup_env.sh --dev --real installs its imports)
# Environment: VENV (default .venv), JOBS (default: number of cores, at most 4).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { printf '[tests] error: %s\n' "$*" >&2; exit 1; }

VENV=${VENV:-.venv}
PY=$VENV/bin/python
[ -x "$PY" ] || PY=python3
cores=$(getconf _NPROCESSORS_ONLN)
JOBS=${JOBS:-$((cores < 4 ? cores : 4))}
ARGUMENTS=()
DEFAULT_PATHS=()

while [ $# -gt 0 ]; do
  case $1 in
    --coverage)
      ARGUMENTS+=(--cov --cov-report=term)
      shift
      ;;
    --with-detectron2)
      checkout=${2:-}
      [ -f "$checkout/detectron2/__init__.py" ] \
        || fail "'$checkout' is not a checkout of Detectron2: it lacks detectron2/__init__.py"
      checkout=$(cd "$checkout" && pwd)
      export PYTHONPATH="$checkout${PYTHONPATH:+:$PYTHONPATH}"
      DEFAULT_PATHS=(tests)  # the tests of the stand-in apply to the stand-in only
      shift 2
      ;;
    *)
      ARGUMENTS+=("$1")
      shift
      ;;
  esac
done

# Many tests start Python processes: with bytecode kept, their imports take half the time.
unset PYTHONDONTWRITEBYTECODE
# Several pytest workers, each with one thread, beat one worker with several threads.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
has_path=false
for argument in ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}; do
  [ -e "${argument%%::*}" ] && has_path=true
done
$has_path && DEFAULT_PATHS=()
# A run whose worker died ends at once: with a replacement, pytest-xdist waits forever for the rest
# of the file that was assigned to the dead worker.
# tests/conftest.py chooses the order of the files: pytest-xdist's own has those of few tests last.
exec "$PY" -m pytest -n "$JOBS" --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
  ${ARGUMENTS[@]+"${ARGUMENTS[@]}"} ${DEFAULT_PATHS[@]+"${DEFAULT_PATHS[@]}"}
