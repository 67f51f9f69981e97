#!/usr/bin/env bash
# Builds the wheels, installs them into a clean environment and uses them in an empty folder.
# Environment: PYTHON (default python3); SITE_PACKAGES: folder of an existing environment, whose
# torch and other requirements are used instead of downloading them. pip's own variables apply, for
# example PIP_EXTRA_INDEX_URL for a torch without CUDA.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
ROOT=$PWD
MAX_WHEEL_MB=3
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
BIN=$WORK/venv/bin
unset PYTHONPATH
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

step() { printf '[packaging] %s\n' "$*"; }
fail() { printf '[packaging] error: %s\n' "$*" >&2; exit 1; }
# quiet COMMAND...: shows the output of a command only if it fails
quiet() { "$@" > "$WORK/log" 2>&1 || fail "$* (exit status $?): $(tail -n 30 "$WORK/log")"; }

step "building wheels"
rm -rf build {compat/detectron2-lite,projects/PSDiff/weights}/build  # a wheel takes what is in them
"$PYTHON" -m venv "$WORK/venv"
cp -r tests/helpers/example_method "$WORK/example"  # no build folder beside the tests
quiet "$BIN/pip" wheel --no-deps --wheel-dir "$WORK/wheels" \
  . ./compat/detectron2-lite ./projects/PSDiff/weights "$WORK/example"
"$PYTHON" - "$WORK/wheels" "$MAX_WHEEL_MB" <<'PY'
import ast
import sys
import zipfile
from pathlib import Path

lines = {ast.unparse(x.targets[0]): x.value
         for x in ast.parse(Path("setup.py").read_text()).body if isinstance(x, ast.Assign)}
expected = {
    "person_search": {"person_search", *ast.literal_eval(lines["PROJECTS"])},
    "person_search_demo_weights": {"person_search_demo_weights"},
    "detectron2_lite": {"detectron2"},
    "example_method": {"example_method.py"},
}
for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    tops = {top for top in tops if not top.endswith(".dist-info")}
    distribution, size = wheel.name.split("-")[0], wheel.stat().st_size / 1e6
    if tops != expected[distribution]:
        sys.exit(f"{wheel.name} holds {sorted(tops)}, expected {sorted(expected[distribution])}")
    if distribution == "person_search":
        if size > float(sys.argv[2]):
            sys.exit(f"{wheel.name} has {size:.2f} MB, more than {sys.argv[2]}")
        if missing := {"person_search/py.typed", "person_search/tools/check_dataset.py"} - {*names}:
            sys.exit(f"{wheel.name} lacks {missing}")
    print(f"[packaging]   {wheel.name}, {size:.2f} MB: {', '.join(sorted(tops))}")
PY

cd "$WORK" && mkdir empty && cd empty
step "without Detectron2: one line"
if [ -n "${SITE_PACKAGES:-}" ]; then
  DEPS=--no-deps
  quiet "$BIN/pip" install $DEPS "$WORK"/wheels/person_search-*.whl
  echo "$SITE_PACKAGES" > "$("$BIN/python" -c 'import site; print(site.getsitepackages()[0])')/reused.pth"
else
  DEPS="-c $ROOT/constraints.txt"
  quiet "$BIN/pip" install $DEPS "$(echo "$WORK"/wheels/person_search-*.whl)[all]"
fi
status=0
"$BIN/person-search" info --gallery none > "$WORK/log" 2>&1 || status=$?
[ $status = 2 ] && [ "$(wc -l < "$WORK/log")" = 1 ] && grep -q "not on PyPI" "$WORK/log" \
  || fail "expected one line about Detectron2: $(cat "$WORK/log")"
quiet "$BIN/pip" install $DEPS "$WORK"/wheels/{detectron2_lite,person_search_demo_weights}-*.whl

step "--help of every program: silent"
tools=$("$BIN/person-search-tools" | awk 'NR > 2 { print $1 }')
[ "$(wc -w <<< "$tools")" -ge 9 ] || fail "person-search-tools lists only: $tools"
for words in person-search person-search-train person-search-tools \
  $(printf 'person-search-tools:%s ' $tools); do
  IFS=: read -r program tool <<< "$words"
  message=$("$BIN/$program" ${tool:+"$tool"} --help 2>&1 > /dev/null) || fail "$words --help"
  [ -z "$message" ] || fail "$words --help prints $message"
done

step "model zoo"
"$BIN/python" -W ignore - <<'PY'
import person_search
from person_search import model_zoo
from person_search.utils import check_backend

assert "site-packages" in person_search.__file__, "this is not the installed wheel"
print("[packaging]  ", check_backend(), person_search.__version__, len(model_zoo.list_configs()), "configs")
name = "PSDiff/psdiff_r50_fpn_prw.yaml"
assert "site-packages" in model_zoo.get_config_file(name)
assert model_zoo.get_config(name).SOLVER.IMS_PER_BATCH, "a key of a _BASE_"
assert model_zoo.get("PSDiff/tiny/psdiff_slim_synthetic.yaml", device="cpu")
try:
    model_zoo.get_config_file("PSDiff/psdiff_r50_fpn_prv.yaml")
    raise SystemExit("a name that does not exist was accepted")
except FileNotFoundError as e:
    assert name in str(e), e
PY
quiet "$BIN/python" -m person_search.utils.collect_env

step "a first search with the weights of the demo"
quiet "$BIN/python" -m person_search.data.synthetic --root datasets/synthetic --quiet \
  --train-images 12 --train-ids 4 --test-images 51 --test-ids 4
mkdir images
cp $(ls datasets/synthetic/CUHK-SYSU/Image/SSM/*.jpg | head -n 4) images
config=PSDiff/tiny/psdiff_slim_synthetic.yaml
quiet "$BIN/person-search" index --gallery gallery --source images --config-file $config
quiet "$BIN/person-search" query --gallery gallery --query "$(ls images/*.jpg | head -n 1)" \
  --include-own --config-file $config
[ -s output/search/results.jsonl ] || fail "the search found nothing"

step "a tool, and a method of another package that trains"
quiet "$BIN/person-search-tools" check_dataset synthetic_cuhk_sysu
quiet "$BIN/pip" install --no-deps "$WORK"/wheels/example_method-*.whl
quiet "$BIN/person-search-train" --config-file "$WORK/example/example.yaml" --num-gpus 0 \
  OUTPUT_DIR output/example
[ -f output/example/model_final.pth ] || fail "the training wrote no weights"
[ "$(ls)" = $'datasets\ngallery\nimages\noutput' ] || fail "other files were written: $(ls)"
step "all fine"
