"""Linking compiled code into a shared library, for this machine's kind of CPU or another.

LLVM makes code for every CPU, but the last step takes a linker with the C library of the platform that it is for.
"""

from __future__ import annotations

import os
import platform
import resource
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tvm.target import codegen

from aap_hw.compile.keys.target import CpuTarget
from aap_hw.errors import UserError
from aap_hw.files import no_use_of_temporary, scratch_folder

# Architectures by the other names that they go by.
_ALIASES = {"arm64": "aarch64", "amd64": "x86_64", **dict.fromkeys(("armv6l", "armv7a", "armv7l"), "arm")}
# Platforms, as Debian names them, for which it has a package with a compiler.
_PACKAGED = (
    "aarch64-linux-gnu",
    "arm-linux-gnueabi",
    "arm-linux-gnueabihf",
    "i686-linux-gnu",
    "powerpc64le-linux-gnu",
    "riscv64-linux-gnu",
    "s390x-linux-gnu",
    "x86_64-linux-gnu",
)
# Looked for in this order where neither CXX nor CC names one.
COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")
# The objects of our kernels, and of what TVM adds: weights, and a GPU's code.
WRITTEN_BY_LLVM = ("lib0.o", "devc.o")
# Bytes that compiled code may have. Where a process may not write as many, LLVM ends it, with a sentence of its own.
LARGEST_OBJECT = 64 << 20


def linker_of(target: CpuTarget) -> str | None:
    """The cross linker for a target; None is this machine's own compiler.

    Raises
    ------
    UserError : it is not installed.
    """
    command = command_of(target)
    return None if runs_here(target) else command[0]


def command_of(target: CpuTarget) -> list[str]:
    """The command that links for a target, as words.

    Raises
    ------
    UserError : there is none.
    """
    return _own() if runs_here(target) else [_cross(triple_of(target))]


def _own() -> list[str]:
    for variable in ("CXX", "CC"):
        command = os.environ.get(variable, "")
        try:
            words = shlex.split(command)
        except ValueError as problem:
            raise UserError(
                f"{variable} says that {command} is the compiler, which has an unclosed quote; correct it or unset it"
            ) from problem
        if words and shutil.which(words[0]) is None:
            raise UserError(
                f"{variable} says that {words[0]} is the compiler, and it is not there; correct it or unset it"
            )
        if words:
            return words
    for name in COMPILERS:
        if found := shutil.which(name):
            return [found]
    raise UserError(
        f"linking compiled code takes a C++ compiler, and the path has none of {', '.join(COMPILERS)}; install one "
        "with: sudo apt-get install g++"
    )


def _cross(triple: str) -> str:
    # Debian's names have no vendor: aarch64-linux-gnu for LLVM's aarch64-unknown-linux-gnu.
    name = "-".join([_architecture(triple), *triple.split("-")[-2:]])
    command = shutil.which(f"{name}-g++")
    if command is None:
        known = f"it with: sudo apt-get install g++-{name.replace('_', '-')}"
        raise UserError(
            f"linking for {triple} takes {name}-g++, which is not installed; "
            f"install {known if name in _PACKAGED else 'a cross compiler of that name'}"
        )
    return command


def link(executable: Any, target: CpuTarget, library: Path) -> None:
    """Link what TVM compiled for a target into a shared library.

    Raises
    ------
    UserError : there is no linker, it fails, a disk is full, or files of the process may not be large enough.
    """
    command, another = command_of(target), ", or name another compiler with CXX" if runs_here(target) else ""
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if allowed != resource.RLIM_INFINITY and allowed < LARGEST_OBJECT:
        raise UserError(
            f"this process may write files of at most {allowed / 1e6:.2g} MB, and compiled code may be larger; allow "
            f"it files of {LARGEST_OBJECT >> 20} MiB (ulimit -f {LARGEST_OBJECT >> 10})"
        )
    with scratch_folder("link") as folder, _kept_in_memory(folder):
        executable.export_library(
            str(library),
            workspace_dir=str(folder),
            fcompile=lambda _, files, options=(): _run(command, [*options, *files], library, another),
        )


@contextmanager
def _kept_in_memory(folder: Path) -> Iterator[None]:
    """Have the files that LLVM is about to write in a folder go to memory: on a full disk it ends the process."""
    with ExitStack() as open_files:
        for name in WRITTEN_BY_LLVM if Path("/proc/self/fd").exists() else ():
            memory = os.memfd_create(name)
            open_files.callback(os.close, memory)
            (folder / name).symlink_to(f"/proc/self/fd/{memory}")
        yield


def _run(command: list[str], arguments: Sequence[str], library: Path, another: str) -> None:
    objects = [path for path in map(Path, arguments) if path.is_symlink()]
    for path in objects:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    try:
        done = subprocess.run(
            [*command, "-shared", "-fPIC", "-o", str(library), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            env={"PATH": os.defpath, **os.environ, "LC_ALL": "C"},
        )
    except OSError as problem:
        raise UserError(f"cannot run the compiler {command[0]}: {problem.strerror}; see that it works") from problem
    if done.returncode == 0:
        return
    said = done.stdout.decode(errors="replace").splitlines()
    # A linker that writes by way of memory crashes instead of telling that a disk is full.
    wanted = sum(path.stat().st_size for path in objects)
    if any("No space left" in line for line in said) or shutil.disk_usage(library.parent).free < wanted:
        raise no_use_of_temporary("No space left on device")
    why = next((line.strip() for line in said if "error" in line), "".join(said[-1:]).strip())
    raise UserError(
        f"{shlex.join(command)} does not link: {why or f'its exit code is {done.returncode}'}; see that it makes "
        f"shared libraries{another}"
    )


def runs_here(target: CpuTarget) -> bool:
    """Whether this machine is of the kind that a target's code is for."""
    triple = triple_of(target)
    return "linux" in triple and _architecture(triple) == _ALIASES.get(platform.machine(), platform.machine())


def triple_of(target: CpuTarget) -> str:
    """LLVM's name of the platform that a target's code is for."""
    return str(target.tvm.attrs.get("mtriple", codegen.llvm_get_system_triple()))


def _architecture(triple: str) -> str:
    architecture = triple.partition("-")[0]
    return _ALIASES.get(architecture, architecture)
