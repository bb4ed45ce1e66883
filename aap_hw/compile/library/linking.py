"""Linking compiled code into a shared library, for this machine's kind of CPU or another.

LLVM makes code for every CPU, but the last step takes a linker with the C library of the platform that it is for.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

from tvm.target import codegen

from aap_hw.compile.keys.target import CpuTarget
from aap_hw.errors import UserError

# Architectures that go by two names.
_ALIASES = {"arm64": "aarch64", "amd64": "x86_64"}


def linker_of(target: CpuTarget) -> str | None:
    """The command that links for a target; None is the one that TVM takes for this machine.

    Raises
    ------
    UserError : it is a cross linker, and it is not installed.
    """
    triple = triple_of(target)
    if runs_here(target):
        return None
    # Debian's names have no vendor: aarch64-linux-gnu for LLVM's aarch64-unknown-linux-gnu.
    parts = triple.split("-")
    name = "-".join([_architecture(triple), *parts[-2:]])
    command = shutil.which(f"{name}-g++")
    if command is None:
        package = f"g++-{name.replace('_', '-')}"
        raise UserError(
            f"linking for {triple} takes {name}-g++, which is not installed; "
            f"install it with: sudo apt-get install {package}"
        )
    return command


def link(executable: Any, target: CpuTarget, library: Path) -> None:
    """Link what TVM compiled for a target into a shared library.

    Raises
    ------
    UserError : the cross linker is not installed.
    """
    linker = linker_of(target)
    executable.export_library(str(library), **({} if linker is None else {"cc": linker}))


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
