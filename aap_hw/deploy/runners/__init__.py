"""The programs that a bundle brings along to be run with: copied into it as they are, and built or started there."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path


def build_command(packages: Path, compiler: str = "g++") -> list[str]:
    """The line in the head of ``run.cc`` that builds it, for the folder that has the packages tvm and tvm_ffi."""
    head = resources.files(__name__).joinpath("run.cc").read_text().partition("#include")[0]
    (line,) = re.findall(r"^//   g\+\+ (.*?)\n//\n", head, re.DOTALL | re.MULTILINE)
    return [compiler, *(word.replace("$P", str(packages)) for word in line.replace("\n//", "").split())]
