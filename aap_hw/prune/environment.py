"""What a run was made with: versions, machine, and the state of the code in the working folder."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aap_hw import ranks
from aap_hw.errors import UserError
from aap_hw.files import read_text, write_atomic

FILE = "environment.json"
PACKAGES = ("aap-hw", "torch", "torchvision", "apache-tvm", "numpy", "scipy")
# A repository on a slow disk is not waited for.
GIT_TIMEOUT_S = 10.0


def environment() -> dict[str, Any]:
    """Facts about this process, as JSON values."""
    return {
        "time": round(time.time(), 3),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "processes": ranks.count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(),
    }


def note_environment(folder: Path) -> None:
    """Add this process to those that a run's folder tells of: one began it, each other one resumed it.

    Raises
    ------
    UserError : what is there is damaged, or cannot be written.
    """
    path = folder / FILE
    try:
        earlier = list(json.loads(read_text(path, "environment"))) if path.exists() else []
    except (ValueError, TypeError) as problem:
        raise UserError(f"{path} is damaged; delete it, the run does without") from problem
    write_atomic(path, json.dumps([*earlier, environment()], indent=1) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the working folder, and whether files were changed since; None if it is in no repository."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", *words], capture_output=True, text=True, errors="replace", check=True, timeout=GIT_TIMEOUT_S
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changes)}
