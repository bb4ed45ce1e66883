#!/usr/bin/env bash
# A 64-bit Arm board without a board: Debian's Python and PyPI's TVM run time for aarch64 under QEMU's user emulation,
# serving TVM's RPC on 127.0.0.1. What it computes is what an Arm CPU computes; how long it takes says nothing.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/emulated_board.sh up [--boards N] [--tracker] | run PROGRAM... | peers | down | status | remove

  up        build the board if need be (about 140 MB of downloads, 200 MB on disk) and start N servers, one by default;
            with --tracker they register at a tracker under the key rpi4
  run       run one program on the board and wait for it: "python3", or the path of one for aarch64
  peers     add ONNX Runtime and LiteRT to what "run python3" can import, and what counts their instructions: the
            header of QEMU's plugins (its source is 130 MB) and LLVM's analyser of machine code
  down      stop servers and tracker
  status    say what runs, and how to reach it
  remove    down, and delete the board

AAP_HW_EMULATED_CPU names the CPU that "run" emulates, cortex-a72 (the default) or cortex-a76.
The board is kept in AAP_HW_EMULATED_BOARD (default: ~/.cache/aap-hw/emulated-board); servers listen from port
AAP_HW_EMULATED_PORT on (default: 9100), the tracker on the port before.
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=${AAP_HW_EMULATED_BOARD:-$HOME/.cache/aap-hw/emulated-board}
case $home in /*) ;; *) home=$PWD/$home ;; esac # apt and QEMU read a relative path from other folders
# What the board was built of; empty while it is being built.
built=$home/built
port=${AAP_HW_EMULATED_PORT:-9100}
key=rpi4
python=${PYTHON:-$here/.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
system=$home/system
site=$system/opt/site
cpu=${AAP_HW_EMULATED_CPU:-}
emulator=(qemu-aarch64 -cpu cortex-a72 -L "$system"
  -E "LD_LIBRARY_PATH=$system/usr/lib/aarch64-linux-gnu:$system/lib/aarch64-linux-gnu")

fail() { echo "emulated_board: $*" >&2; exit 2; }

require() {
  local missing=()
  command -v qemu-aarch64 >/dev/null || missing+=(qemu-user)
  command -v aarch64-linux-gnu-g++ >/dev/null || missing+=(g++-aarch64-linux-gnu)
  command -v apt-get >/dev/null && command -v dpkg >/dev/null || fail "this script takes Debian's packages and needs apt-get and dpkg"
  install_missing "${missing[@]}"
}

install_missing() {
  [ $# -gt 0 ] || return 0
  local install="apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $*"
  if [ "$(id -u)" -eq 0 ]; then
    echo "installing $*"
    apt-get update -qq && $install >/dev/null || fail "apt-get could not install $*"
  else
    fail "$* missing; install with: sudo apt-get install -y --no-install-recommends $*"
  fi
}

# The version of TVM that a board must have is the one that aap-hw has.
requirement() { sed -n "s/^ *\"\($1==[^\"]*\)\".*/\1/p" "$here/pyproject.toml"; }

# The folder is deleted as a whole, so one that has other files is nobody's but its owner's.
check_ours() {
  [ -f "$built" ] || [ -z "$(ls -A "$home" 2>/dev/null)" ] ||
    fail "$home is no emulated board and not empty; delete it, or name a folder for the board alone in AAP_HW_EMULATED_BOARD"
}

build() {
  local wanted
  wanted="$(requirement apache-tvm) $(requirement apache-tvm-ffi) 1"
  [ -f "$built" ] && [ "$(cat "$built")" = "$wanted" ] && return
  check_ours
  echo "building the board in $home"
  down
  rm -rf "$home"
  mkdir -p "$site" "$home"/{apt/lists/partial,apt/archives/partial,apt/none,bin,run}
  : >"$built"
  debian
  packages
  programs
  TVM_USE_RUNTIME_LIB=1 "$home/bin/python" -c 'import platform, tvm; assert platform.machine() == "aarch64"' ||
    fail "the emulated Python cannot import TVM"
  rm -rf "$home/apt"
  echo "$wanted" >"$built"
}

# Debian's arm64 packages, from the mirrors that this machine's own apt uses; its package database stays untouched.
debian() {
  mirrors "deb [arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" >"$home/apt/sources.list"
  : >"$home/apt/status"
  { apt_settings "$home/apt"; echo "APT::Architecture \"arm64\"; APT::Architectures { \"arm64\"; };"; } >"$home/apt/apt.conf"
  export APT_CONFIG=$home/apt/apt.conf
  apt-get update -qq || fail "apt-get cannot read the package lists for arm64"
  apt-get install -qq -y --download-only python3.11 libstdc++6 libgomp1 ||
    fail "apt-get cannot download python3.11 for arm64; Debian 12 has it"
  unset APT_CONFIG
  local package
  for package in "$home"/apt/archives/*.deb; do dpkg -x "$package" "$system"; done
}

# mirrors KIND: a list of sources of that kind, from those of this machine that are Debian's.
mirrors() {
  local found
  # shellcheck disable=SC2016 # these are apt's variables
  found=$(apt-get indextargets --format '$(ORIGIN)|$(REPO_URI) $(RELEASE)' | sort -u | grep '^Debian|') ||
    fail "apt knows no package lists of Debian's; run this on Debian, after: sudo apt-get update"
  sed "s#^Debian|\\(\\S*\\) \\(\\S*\\)#$1 \\1 \\2 main#" <<<"$found"
}

# apt_settings FOLDER: those with which apt keeps all that it writes in a folder.
apt_settings() {
  cat <<TEXT
APT::Install-Recommends "false"; Debug::NoLocking "1"; APT::Sandbox::User "";
Dir::Etc::sourcelist "$1/sources.list"; Dir::Etc::sourceparts "$1/none"; Dir::Etc::parts "$1/none";
Dir::State "$1"; Dir::State::status "$1/status"; Dir::Cache "$1";
TEXT
}

# wheels FOLDER PACKAGE...: unpack packages for the board into a folder, without what they depend on.
wheels() {
  local folder=$1 platforms=() version wheel downloads=$home/wheels
  shift
  rm -rf "$downloads"
  for version in manylinux_2_3{5,4,1} manylinux_2_2{8,7,4} manylinux2014; do platforms+=(--platform "${version}_aarch64"); done
  "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
    "${platforms[@]}" -d "$downloads" "$@" || fail "pip cannot download $* for aarch64"
  for wheel in "$downloads"/*.whl; do "$python" -m zipfile -e "$wheel" "$folder"; done
  rm -rf "$downloads"
}

packages() {
  wheels "$site" "$(requirement apache-tvm)" "$(requirement apache-tvm-ffi)" 'numpy>=2.2,<3' ml_dtypes typing_extensions psutil \
    cloudpickle
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
  ! listens "$at" || fail "something else listens at 127.0.0.1:$at; choose other ports with AAP_HW_EMULATED_PORT"
  TVM_USE_RUNTIME_LIB=1 TVM_NUM_THREADS=1 setsid "$@" >"$home/run/$name.log" 2>&1 </dev/null &
  echo "$!" >"$home/run/$name.pid"
  began "$!" >"$home/run/$name.began"
  echo "$at" >"$home/run/$name.port"
  for _ in $(seq 600); do
    listens "$at" && return
    alive "$name" || { tail -n 3 "$home/run/$name.log" >&2; fail "$name ended at once; see $home/run/$name.log"; }
    sleep 0.2
  done
  fail "$name did not start within two minutes; see $home/run/$name.log"
}

# began NUMBER: when that process began, in ticks since the machine did; nothing if there is none.
began() { cut -d " " -f 22 "/proc/$1/stat" 2>/dev/null || true; }
# The number alone may be that of another process by now, as after a restart of the machine.
alive() {
  local now
  now=$(began "$(cat "$home/run/$1.pid")")
  [ -n "$now" ] && [ "$now" = "$(cat "$home/run/$1.began" 2>/dev/null)" ]
}
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
  [ -z "$cpu" ] || as_cpu
  if [ "$1" = python3 ]; then
    shift
    [ -n "$cpu" ] || exec "$home/bin/python" "$@"
    emulator+=(-E "PYTHONHOME=$system/usr" -E "PYTHONPATH=$site:$home/peers")
    set -- "$system/usr/bin/python3.11" "$@"
  fi
  exec "${emulator[@]}" "$@"
}

# Engines choose their code by what /proc/cpuinfo says of the CPU; QEMU would show them this machine's.
as_cpu() {
  local part features root=$home/cpus/$cpu entry
  case $cpu in
    cortex-a72) part=0xd08 features="fp asimd evtstrm crc32 cpuid" ;;
    cortex-a76) part=0xd0b features="fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp" ;;
    *) fail "AAP_HW_EMULATED_CPU is $cpu; cortex-a72 and cortex-a76 are known" ;;
  esac
  mkdir -p "$root/proc"
  for entry in "$system"/*; do ln -sfn "$entry" "$root/$(basename "$entry")"; done
  for ((entry = 0; entry < $(nproc); entry++)); do
    printf "%s\t: %s\n" processor $entry BogoMIPS 108.00 Features "$features" "CPU implementer" 0x41 \
      "CPU architecture" 8 "CPU variant" 0x0 "CPU part" $part "CPU revision" 3
    echo
  done >"$root/proc/cpuinfo"
  emulator=(qemu-aarch64 -cpu "$cpu" -L "$root" "${emulator[@]:5}")
}

peers() {
  require
  build
  local missing=() newest
  command -v gcc >/dev/null || missing+=(gcc)
  # Older ones know no pipeline of a Cortex-A76.
  newest=$(apt-cache pkgnames llvm- | grep -xE "llvm-[0-9]+" | sort -V | tail -n 1) || true
  [ -x "/usr/lib/${newest:-llvm}/bin/llvm-mca" ] || missing+=("${newest:-llvm}")
  install_missing "${missing[@]}"
  wheels "$home/peers" onnxruntime ai-edge-litert flatbuffers protobuf packaging tqdm backports.strenum
  header
  echo "peers are in $home/peers, the header in $home/include"
}

# The header fits the QEMU that is installed: both are of one source package.
header() {
  [ ! -f "$home/include/qemu-plugin.h" ] || return 0
  local folder=$home/source
  mkdir -p "$folder"/{lists/partial,none} "$home/include"
  mirrors "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" >"$folder/sources.list"
  : >"$folder/status"
  apt_settings "$folder" >"$folder/apt.conf"
  (cd "$folder" && export APT_CONFIG=$folder/apt.conf && apt-get update -qq && apt-get source -qq --download-only qemu) ||
    fail "apt-get cannot download the source of QEMU"
  tar -xJf "$folder"/qemu_*.orig.tar.xz -C "$home/include" --strip-components=3 --wildcards "*/include/qemu/qemu-plugin.h" ||
    fail "the source of QEMU has no include/qemu/qemu-plugin.h"
  rm -rf "$folder"
}

running() { compgen -G "$home/run/*.pid" >/dev/null; }

down() {
  local file group
  for file in "$home"/run/*.pid; do
    [ -e "$file" ] || continue
    group=$(cat "$file")
    # What a server that has ended leaves behind has its number still, which then no other process gets.
    if alive "$(basename "$file" .pid)" || [ ! -e "/proc/$group" ]; then
      kill -TERM -- "-$group" 2>/dev/null || true
      for _ in $(seq 20); do kill -0 -- "-$group" 2>/dev/null || break; sleep 0.1; done
      kill -KILL -- "-$group" 2>/dev/null || true
    fi
    rm -f "$file" "${file%.pid}".{began,port,log}
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
  peers) peers ;;
  run) shift; run "$@" ;;
  down) down ;;
  status) status ;;
  remove) check_ours; down; rm -rf "$home" ;;
  *) usage; [ "${1:-}" = --help ] || exit 2 ;;
esac
