#!/bin/sh
# Automatic Attention Pruning in the paper's settings: each configuration file given, or all of scripts/reproduce.
#   GPUS=4 scripts/reproduce_aap.sh scripts/reproduce/resnet56_cifar10.toml
# What follows -- is passed on, for example: scripts/reproduce_aap.sh -- --epochs 1 --limit 512 --rounds 1 --data random
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
GPUS=${GPUS:-1}
configs=
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  configs="$configs $1"
  shift
done
[ $# -eq 0 ] || shift
for config in ${configs:-scripts/reproduce/*.toml}; do
  if [ "$GPUS" -gt 1 ]; then
    "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$GPUS" scripts/reproduce_aap.py "$config" "$@"
  else
    "$PYTHON" scripts/reproduce_aap.py "$config" "$@"
  fi
done
