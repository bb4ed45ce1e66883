#!/usr/bin/env bash
# Automatic Attention Pruning in the paper's settings: each configuration file given, or all of scripts/reproduce.
#   GPUS=4 scripts/reproduce_aap.sh scripts/reproduce/resnet56_cifar10.toml
# What follows -- is passed on, for example: scripts/reproduce_aap.sh -- --epochs 1 --limit 512 --rounds 1 --data random
# Images are looked for in this repository's data/, and runs are kept in its runs/, wherever you start it.
set -euo pipefail
configs=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in /*) configs+=("$1") ;; *) configs+=("$PWD/$1") ;; esac
  shift
done
[ $# -eq 0 ] || shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ ${#configs[@]} -gt 0 ] || configs=(scripts/reproduce/*.toml)
program=("${PYTHON:-.venv/bin/python}")
[ "${GPUS:-1}" -le 1 ] || program+=(-m torch.distributed.run --standalone --nproc-per-node "$GPUS")
for config in "${configs[@]}"; do
  "${program[@]}" scripts/reproduce_aap.py "$config" "$@"
done
