"""Networks of a benchmark run in processes of their own, and their rows are kept in a journal."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


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
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"no answer in {limit_s} s"
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"ended with code {done.returncode}"]
        return f"crashed: {last[0][:200]}"
    return done


def journalled(journal: Path | None) -> dict[str, dict[str, Any]]:
    """The rows of a journal by their models; the last one of each counts."""
    if journal is None or not journal.exists():
        return {}
    rows = [json.loads(line) for line in journal.read_text("utf-8").splitlines()]
    return {row["model"]: row for row in rows}


def append(journal: Path | None, row: dict[str, Any]) -> None:
    """Add a row to the journal, if there is one."""
    if journal:
        with journal.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
