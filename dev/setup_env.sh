#!/usr/bin/env bash
# Creates a virtual environment with everything the project needs. Repeated runs find the stamps of
# the first and return at once; a changed setup.py, constraints.txt or Python runs pip again.
#
#   dev/setup_env.sh            dependencies of demo, training and search
#   dev/setup_env.sh --dev      also the tools of the tests and of the linter
#   dev/setup_env.sh --real     also the imports of a source checkout of the real Detectron2
#   dev/setup_env.sh --diffps   also transformers
#   dev/setup_env.sh --page     also the page for the browser, person-search serve
#   dev/setup_env.sh --search   also FAISS, for galleries of more than 200,000 persons
#
# Environment: PYTHON (default python3), VENV (default .venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
DISK_GB=7
EXTRAS=()

say() { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

for argument in "$@"; do
  case $argument in
    --dev | --real | --diffps | --page | --search) EXTRAS+=("${argument#--}") ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "dev/setup_env.sh"; exit 0 ;;
    *) fail "unknown option '$argument'; choose from --dev, --real, --diffps, --page, --search" ;;
  esac
done

check_python() {
  command -v "$PYTHON" > /dev/null \
    || fail "'$PYTHON' was not found. Install Python 3.11 or later, or name another: PYTHON=python3.12 make ..."
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "'$PYTHON' is $("$PYTHON" -V 2>&1); 3.11 or later is needed. Name another: PYTHON=python3.12 make ..."
  "$PYTHON" -c 'import ensurepip, venv' 2> /dev/null \
    || fail "'$PYTHON' lacks the module venv or ensurepip. On Debian and Ubuntu: apt install python3-venv"
}

check_disk() {
  local free_gb
  free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
  if [ "$free_gb" -lt "$DISK_GB" ]; then
    say "warning: about $DISK_GB GB are required here, $free_gb GB are free. PyTorch includes CUDA libraries;"
    say "         a CPU build installed into $VENV beforehand is kept and takes about 1.5 GB."
  fi
}

make_venv() {
  if "$VENV/bin/python" -m pip --version > /dev/null 2>&1; then
    return
  fi
  check_python
  check_disk
  say "creating $VENV with $("$PYTHON" -V 2>&1)"
  "$PYTHON" -m venv "$VENV" || fail "could not create $VENV; remove an incomplete one and try again"
}

# A change of any of these inputs runs pip again.
fingerprint() {
  { pwd; "$VENV/bin/python" -V; printf '%s\n' "$@"; cat setup.py pyproject.toml constraints.txt \
    compat/detectron2-lite/pyproject.toml; } | cksum
}

# install_once NAME WHAT PIP-ARGUMENTS...
install_once() {
  local name=$1 what=$2 stamp="$VENV/.installed-$1" wanted
  shift 2
  wanted=$(fingerprint "$@")
  if [ "$(cat "$stamp" 2> /dev/null)" = "$wanted" ]; then
    return
  fi
  say "installing $what"
  # --no-compile: only imported modules, a small part, are compiled, at their first import
  "$VENV/bin/python" -m pip install --no-compile --disable-pip-version-check -c constraints.txt "$@" \
    || fail "pip could not install $what; see its message above. The next run continues from here."
  printf '%s\n' "$wanted" > "$stamp"
}

started=$SECONDS
make_venv
"$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || fail "$VENV holds $("$VENV/bin/python" -V); 3.11 or later is needed. Remove it and run again."
install_once torch "torch and torchvision (the large download)" torch torchvision
install_once project "the project and detectron2-lite" -e . -e compat/detectron2-lite
for extra in ${EXTRAS[@]+"${EXTRAS[@]}"}; do
  install_once "$extra" "extra '$extra'" -e ".[$extra]"
done
backend=$("$VENV/bin/python" -c 'from person_search.utils import check_backend; print(check_backend())')
say "$VENV is ready ($((SECONDS - started)) s), detectron2 backend: $backend"
