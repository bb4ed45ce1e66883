"""Compiled networks timed a few at a time, each time beside the unpruned one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Networks timed in turn beside the unpruned one.
IN_TURN = 7


def timed_beside(unpruned: Path, others: Sequence[Path], image: Any, device: Any) -> dict[Path, tuple[float, float]]:
    """Latency of each network in ms and as a share of the unpruned one's beside it; the unpruned one is included."""
    from _report import say

    from aap_hw.device.timing import time_in_turn

    found: dict[Path, tuple[float, float]] = {}
    for start in range(0, len(others), IN_TURN):
        some = [unpruned, *others[start : start + IN_TURN]]
        libraries = {str(file): device.load(file) for file in some}
        arrays = [each.numpy() for each in image]
        timings = time_in_turn(libraries, "main", arrays, device.profile.measure)
        us = {file: timings[str(file)].latency_us for file in some}
        found |= {file: (us[file] / 1e3, us[file] / us[unpruned]) for file in some}
        say(f"measured {min(start + IN_TURN, len(others))} of {len(others)} networks")
    return found
