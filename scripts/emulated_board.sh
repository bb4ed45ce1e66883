#!/usr/bin/env bash
# A 64-bit Arm board without a board: Debian's Python and PyPI's TVM run time for aarch64 under QEMU's user emulation,
# serving TVM's RPC on 127.0.0.1. What it computes is what an Arm CPU computes; how long it takes says nothing.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/emulated_board.sh up [--boards N] [--tracker] | run PROGRAM... | down | status | remove

  up        build the board if need be (about 140 MB of downloads, 200 MB on disk) and start N servers, one by default;
            with --tracker they register at a tracker under the key rpi4
  run       run one program on the board and wait for it: "python3", or the path of one for aarch64
  down      stop servers and tracker
  status    say what runs, and how to reach it
  remove    down, and delete the board

It is kept in AAP_HW_EMULATED_BOARD (default: ~/.cache/aap-hw/emulated-board); servers listen from port
AAP_HW_EMULATED_PORT on (default: 9100), the tracker on the port before.
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=${AAP_HW_EMULATED_BOARD:-$HOME/.cache/aap-hw/emulated-board}
port=${AAP_HW_EMULATED_PORT:-9100}
key=rpi4
python=${PYTHON:-$here/.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
system=$home/system
site=$system/opt/site
emulator=(qemu-aarch64 -cpu cortex-a72 -L "$system"
  -E "LD_LIBRARY_PATH=$system/usr/lib/aarch64-linux-gnu:$system/lib/aarch64-linux-gnu")

fail() { echo "emulated_board: $*" >&2; exit 2; }

require() {
  local missing=()
  command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
  command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || fail "this script takes Debian's packages and needs apt-get and dpkg"
  [ ${#missing[@]} -eq 0 ] && return
  local install="apt-get install -y --no-install-recommends ${missing[*]}"
  if [ "$(id -u)" -eq 0 ]; then
    echo "installing ${missing[*]}"
    apt-get update -qq && $install >/dev/null || fail "apt-get could not install ${missing[*]}"
  else
    fail "${missing[*]} missing; install with: sudo $install"
  fi
}

# The version of TVM that a board must have is the one that aap-hw has.
requirement() { sed -n "s/^ *\"\($1==[^\"]*\)\".*/\1/p" "$here/pyproject.toml"; }

build() {
  local wanted built=$home/built
  wanted="$(requirement apache-tvm) $(requirement apache-tvm-ffi) 1"
  [ -f "$built" ] && [ "$(cat "$built")" = "$wanted" ] && return
  echo "building the board in $home"
  rm -rf "$home"
  mkdir -p "$site" "$home"/{apt/lists/partial,apt/archives/partial,apt/none,wheels,bin,run}
  debian
  packages
  programs
  TVM_USE_RUNTIME_LIB=1 "$home/bin/python" -c 'import platform, tvm; assert platform.machine() == "aarch64"' ||
    fail "the emulated Python cannot import TVM"
  rm -rf "$home/apt" "$home/wheels"
  echo "$wanted" >"$built"
}

# Debian's arm64 packages, from the mirrors that this machine's own apt uses; its package database stays untouched.
debian() {
  # shellcheck disable=SC2016 # these are apt's variables
  apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | sort -u | grep -i debian |
    sed 's#^\(\S*\) \(\S*\)#deb [arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \1 \2 main#' \
      >"$home/apt/sources.list"
  [ -s "$home/apt/sources.list" ] || fail "apt knows no Debian mirror; run this on Debian, with its package sources"
  : >"$home/apt/status"
  cat >"$home/apt/apt.conf" <<TEXT
APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Install-Recommends "false"; Debug::NoLocking "1";
APT::Sandbox::User "";
Dir::Etc::sourcelist "$home/apt/sources.list"; Dir::Etc::sourceparts "$home/apt/none"; Dir::Etc::parts "$home/apt/none";
Dir::State "$home/apt"; Dir::State::status "$home/apt/status"; Dir::Cache "$home/apt";
TEXT
  export APT_CONFIG=$home/apt/apt.conf
  apt-get update -qq || fail "apt-get cannot read the package lists for arm64"
  apt-get install -qq -y --download-only python3.11 libstdc++6 libgomp1 || fail "apt-get cannot download Python for arm64"
  unset APT_CONFIG
  local package
  for package in "$home"/apt/archives/*.deb; do dpkg -x "$package" "$system"; done
}

packages() {
  local platforms=() version
  for version in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux2014; do platforms+=(--platform "${version}_aarch64"); done
  "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
    "${platforms[@]}" -d "$home/wheels" "$(requirement apache-tvm)" "$(requirement apache-tvm-ffi)" \
    'numpy>=2.2,<3' ml_dtypes typing_extensions psutil cloudpickle || fail "pip cannot download TVM for aarch64"
  local wheel
  for wheel in "$home"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done
  # Only the compiler needs it, and it is most of what there is.
  rm -f "$site"/tvm/lib/libtvm_compiler.so
}

programs() {
  # This file tells aap-hw that no time measured here is a latency.
  mkdir -p "$system/etc/aap-hw"
  echo "QEMU user emulation, $(qemu-aarch64 --version | head -n 1)" >"$system/etc/aap-hw/emulated"
  cat >"$home/bin/python" <<TEXT
#!/bin/sh
export AAP_HW_EMULATED_PYTHON="$home/bin/python"
exec ${emulator[@]@Q} -E PYTHONHOME="$system/usr" -E PYTHONPATH="$site" "$system/usr/bin/python3.11" "\$@"
TEXT
  chmod +x "$home/bin/python"
  # TVM's server starts itself anew; the kernel cannot start an aarch64 program, so that must go through QEMU again.
  cat >"$site/sitecustomize.py" <<'TEXT'
import os
import sys

if "AAP_HW_EMULATED_PYTHON" in os.environ:
    sys.executable = sys._base_executable = os.environ["AAP_HW_EMULATED_PYTHON"]
TEXT
}

# start NAME PORT COMMAND...: in a process group of its own, by which it is stopped.
start() {
  local name=$1 at=$2
  shift 2
  TVM_USE_RUNTIME_LIB=1 TVM_NUM_THREADS=1 setsid "$@" >"$home/run/$name.log" 2>&1 </dev/null &
  echo "$!" >"$home/run/$name.pid"
  echo "$at" >"$home/run/$name.port"
  for _ in $(seq 600); do
    listens "$at" && return
    alive "$name" || { tail -n 3 "$home/run/$name.log" >&2; fail "$name ended at once; see $home/run/$name.log"; }
    sleep 0.2
  done
  fail "$name did not start within two minutes; see $home/run/$name.log"
}

alive() { kill -0 -- "-$(cat "$home/run/$1.pid")" 2>/dev/null; }
# Looked up instead of tried: a server takes every connection for a session.
listens() { grep -q "0100007F:$(printf %04X "$1") 00000000:0000 0A" /proc/net/tcp; }

up() {
  local boards=1 tracker= number
  while [ $# -gt 0 ]; do
    case $1 in
      --boards) [[ ${2:-} =~ ^[1-9][0-9]?$ ]] || fail "--boards takes a number"; boards=$2; shift 2 ;;
      --tracker) tracker=1; shift ;;
      *) usage >&2; exit 2 ;;
    esac
  done
  require
  build
  running && down
  local where=()
  if [ -n "$tracker" ]; then
    "$python" -c 'import tornado' 2>/dev/null || fail "the tracker needs tornado: $python -m pip install tornado"
    start tracker $((port - 1)) "$python" -m tvm.exec.rpc_tracker --host 127.0.0.1 --port $((port - 1)) --port-end "$port"
    where=(--tracker "127.0.0.1:$((port - 1))")
  fi
  for ((number = 0; number < boards; number++)); do
    local at=$((port + number))
    ! listens $at || fail "something else listens at 127.0.0.1:$at; choose other ports with AAP_HW_EMULATED_PORT"
    # The default host would let anybody in the network run code here.
    start "board$number" $at "$home/bin/python" -m tvm.exec.rpc_server --host 127.0.0.1 --port $at --port-end $((at + 1)) \
      --key "$key" "${where[@]}"
  done
  status
}

run() {
  [ $# -gt 0 ] || { usage >&2; exit 2; }
  require
  build >&2
  [ "$1" != python3 ] || { shift; exec "$home/bin/python" "$@"; }
  exec "${emulator[@]}" "$@"
}

running() { compgen -G "$home/run/*.pid" >/dev/null; }

down() {
  local file group
  for file in "$home"/run/*.pid; do
    [ -e "$file" ] || continue
    group=$(cat "$file")
    kill -TERM -- "-$group" 2>/dev/null || true
    for _ in $(seq 20); do kill -0 -- "-$group" 2>/dev/null || break; sleep 0.1; done
    kill -KILL -- "-$group" 2>/dev/null || true
    rm -f "$file" "${file%.pid}.port" "${file%.pid}.log"
  done
}

status() {
  local file name
  running || { echo "no emulated board runs; start one with: scripts/emulated_board.sh up"; return; }
  for file in "$home"/run/*.pid; do
    name=$(basename "$file" .pid)
    if ! alive "$name"; then
      echo "$name has ended; see $home/run/$name.log"
    elif [ "$name" = tracker ]; then
      echo "tracker    --connect tracker://127.0.0.1:$(cat "$home/run/$name.port")/$key"
    elif [ -e "$home/run/tracker.pid" ]; then
      echo "$name     registered at the tracker"
    else
      echo "$name     --connect rpc://127.0.0.1:$(cat "$home/run/$name.port")"
    fi
  done
}

case ${1:-} in
  up) shift; up "$@" ;;
  run) shift; run "$@" ;;
  down) down ;;
  status) status ;;
  remove) down; rm -rf "$home" ;;
  *) usage; [ "${1:-}" = --help ] || exit 2 ;;
esac
