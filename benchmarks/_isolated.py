"""Networks of a benchmark run in processes of their own, and their rows are kept in a journal."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _cells import Journal


def in_its_own_process(script: list[str], limit_s: int) -> subprocess.CompletedProcess[str] | str:
    """A script that ended well within some seconds of processor time, or one sentence that says how it did not."""
    limits = limit_s, limit_s + 5
    done = subprocess.run(
        [sys.executable, *script],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, limits),
    )
    if done.returncode == -signal.SIGXCPU:
        return f"no answer in {limit_s} s"
    if done.returncode == -signal.SIGKILL:
        return "killed: was there too little memory?"
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with code {done.returncode}"]
        return f"crashed: {last[0][:200]}"
    return done


def journalled(journal: Path | None, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that a journal has of these settings, by their models; the last one of each counts."""
    kept = Journal(journal).rows if journal else []
    return {each["row"]["model"]: each["row"] for each in kept if each.get("settings") == settings}


def append(journal: Path | None, settings: Mapping[str, Any], row: dict[str, Any]) -> None:
    """Add a row to the journal, if there is one, with the settings that it is of."""
    if journal:
        Journal(journal).add({"settings": settings, "row": row})
