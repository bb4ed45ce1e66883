"""What every benchmark prints, and the facts about the machine that its figures hold for."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aap_hw.device import load_profile
from aap_hw.device.connection import LocalDevice, cpu_model
from aap_hw.lut.library_cache import LibraryCache, users_cache

PACKAGES = ("torch", "apache-tvm", "onnxruntime", "numpy", "scipy", "openvino", "nncf")
"""Reported where they are installed."""


def machine() -> dict[str, Any]:
    """CPU, cores and versions."""
    found = {name: _version(name) for name in PACKAGES}
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: each for name, each in found.items() if each is not None},
    }


def print_report(rows: list[dict[str, Any]], summary: dict[str, Any], destination: str | None) -> None:
    """Print the rows as text, or as one JSON object to a file or, for ``-``, to standard output."""
    report = {"machine": machine(), "command": shlex.join(sys.argv), "rows": rows, "summary": summary}
    text = json.dumps(report, indent=1)
    if destination is None:
        for row in rows:
            print("  ".join(f"{name} {_short(value)}" for name, value in row.items()))
        print("summary:  " + "  ".join(f"{name} {_short(value)}" for name, value in summary.items()))
    elif destination == "-":
        print(text)
    else:
        Path(destination).parent.mkdir(parents=True, exist_ok=True)  # what took hours is not lost for want of a folder
        Path(destination).write_text(text + "\n", "utf-8")


def zoo_name(name: str) -> str:
    """What the zoo calls a network that torchvision may write with other underscores."""
    from aap_hw.models import zoo

    return next((own for own in zoo.names() if own.replace("_", "") == name.replace("_", "")), name)


def benchmark_device(name: str, quick: bool) -> LocalDevice:
    """This machine by a device profile; with few widths and samples if it is only to show that a benchmark runs."""
    profile = load_profile(name)
    if quick:
        widths = profile.widths.model_copy(update={"at_most": 2})
        measure = profile.measure.model_copy(update={"warmup": 1, "repeats": 3, "copies": 2})
        profile = profile.model_copy(update={"widths": widths, "measure": measure})
    return LocalDevice(profile)


def cache_of(quick: bool) -> LibraryCache | None:
    """Where compiled points are kept: nowhere if it is told how long it takes to compile them."""
    return users_cache() if quick else None


def say(line: str) -> None:
    """Progress goes to standard error."""
    print(line, file=sys.stderr, flush=True)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
