#!/usr/bin/env bash
# Trains the tiny model of the tests on two network namespaces, which have nothing in common but a
# network cable (veth), as on two machines. Needs root and iproute2; no GPU.
#
#   dev/try_two_machines.sh          1. --num-machines 2: the same weights as of two processes here
#                                    2. torchrun --nnodes 2: the same weights again
#                                    3. one machine loses its network: both end within a minute
# Environment: VENV (default .venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PY=$(realpath -s "${VENV:-.venv}/bin/python")
WORK=$(mktemp -d)
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD/tests/helpers:$PWD${PYTHONPATH:+:$PYTHONPATH}"

step() { printf '[machines] %s\n' "$*"; }
fail() { printf '[machines] error: %s\n' "$*" >&2; exit 1; }
cleanup() {
  for name in psa psb; do
    ip netns pids "$name" 2> /dev/null | xargs -r kill -9 || true
    ip netns delete "$name" 2> /dev/null || true
  done
  rm -rf "$WORK"
}

[ "$(id -u)" = 0 ] && command -v ip > /dev/null || fail "needs root and iproute2 (ip netns)"
trap cleanup EXIT
ip netns add psa && ip netns add psb || fail "cannot create network namespaces"
ip link add psa0 netns psa type veth peer name psb0 netns psb
for name in psa psb; do ip -n "$name" link set lo up; done
ip -n psa address add 10.77.0.1/24 dev psa0 && ip -n psa link set psa0 up
ip -n psb address add 10.77.0.2/24 dev psb0 && ip -n psb link set psb0 up

cat > "$WORK/train.py" << 'PY'
import argparse
import threading

from tiny_runs import train_by_launcher

from person_search.cli import add_launch_options
from person_search.engine import launch_program


def work(args):
    train_by_launcher(args.output)
    if args.wait:  # until the other machine is lost
        print("waiting", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_launch_options(parser, num_gpus=0)
    parser.add_argument("output")
    parser.add_argument("--wait", action="store_true")
    launch_program(work, parser.parse_args())
PY

# gloo and the store name their own interface, since a namespace has no name service
on() { local name=$1; shift; ip netns exec "$name" env GLOO_SOCKET_IFNAME="${name}0" "$@"; }
same() {
  "$PY" - "$WORK/here/model_final.pth" "$1/model_final.pth" << 'PY'
import sys

import torch

first, second = (torch.load(path, weights_only=True)["model"] for path in sys.argv[1:])
assert first.keys() == second.keys() and len(first) > 5
assert all(torch.equal(value, second[name]) for name, value in first.items()), "other weights"
PY
}

step "two processes on one machine"
"$PY" "$WORK/train.py" "$WORK/here" --num-processes 2 > "$WORK/here.log" 2>&1 || fail "$(tail "$WORK/here.log")"

# both LOG COMMAND...: runs a command on both machines, with the rank in place of RANK
both() {
  local log=$1 rank name; shift
  PIDS=()
  for rank in 0 1; do
    name=$([ $rank = 0 ] && echo psa || echo psb)
    on $name "$PY" "${@//RANK/$rank}" > "$WORK/$log$rank.log" 2>&1 &
    PIDS+=($!)
  done
}
succeed() { wait "${PIDS[0]}" && wait "${PIDS[1]}" || fail "$(tail "$WORK/$1"?.log)"; }
MACHINES=(--num-machines 2 --machine-rank RANK --dist-url tcp://10.77.0.1:29500)

step "two machines with --num-machines 2"
both two "$WORK/train.py" "$WORK/two" "${MACHINES[@]}"
succeed two
same "$WORK/two"

step "two machines with torchrun --nnodes 2"
both elastic -m torch.distributed.run --nnodes 2 --node-rank RANK --nproc-per-node 1 \
  --master-addr 10.77.0.1 --master-port 29500 "$WORK/train.py" "$WORK/elastic"
succeed elastic
same "$WORK/elastic"

step "the second machine loses its network"
both lost "$WORK/train.py" "$WORK/lost" --wait "${MACHINES[@]}"
until grep -qs waiting "$WORK/lost0.log" && grep -qs waiting "$WORK/lost1.log"; do
  [ "$(jobs -r | wc -l)" = 2 ] || fail "$(tail "$WORK"/lost?.log)"
  sleep 1
done
ip -n psb link set psb0 down
start=$SECONDS
wait "${PIDS[0]}" && fail "the first machine ended without an error"
wait "${PIDS[1]}" && fail "the second machine ended without an error"
grep -h "no sign of life" "$WORK"/lost?.log || fail "$(tail "$WORK"/lost?.log)"
[ $((SECONDS - start)) -le 75 ] || fail "it took $((SECONDS - start)) s"
step "both ended after $((SECONDS - start)) s; all fine"
