"""A GPU that is not there: libraries in place of CUDA's, in which kernels do nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

NAME = "a pretended GPU"


def pretended_gpu(folder: Path) -> dict[str, str]:
    """The environment of a process that finds a GPU whose kernels do nothing; the libraries are made in the folder."""
    library, versions = folder / "libcudart.so.13", folder / "versions"
    versions.write_text("libcudart.so.13 { global: *; };")
    source = Path(__file__).with_suffix(".c")
    linking = [f"-Wl,-soname,{library.name}", f"-Wl,--version-script={versions}"]
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wno-unused", source, "-o", library, *linking], check=True)
    shutil.copy(library, folder / "libcuda.so.1")
    return {"LD_PRELOAD": str(library), "LD_LIBRARY_PATH": str(folder)}
