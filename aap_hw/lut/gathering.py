"""Taking measured points into a table, at one speed of the device, and comparing the boards that they come from.

An interrupted profile leaves points behind that have been visited too rarely to be taken (``settled``).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np

from aap_hw.compile.keys.address import Address
from aap_hw.device.visiting import is_settled
from aap_hw.lut.journal import Entry
from aap_hw.lut.table import LatencyTable

# Boards of one kind may differ by this share, besides what each of them varies by, before it is said.
TOLERANCE = 0.05


def settled(entries: Sequence[Entry], most: int) -> list[Entry]:
    """The visits of points that need no other one, if a point has ``most`` visits at most."""
    ratios: dict[Address, list[float]] = {}
    for entry in entries:
        ratios.setdefault(entry.address, []).append(entry.ratio)
    return [entry for entry in entries if is_settled(ratios[entry.address], most)]


def gather(table: LatencyTable, entries: Sequence[Entry]) -> None:
    """Take visits into the table: the quickest of each point, scaled to the table's speed of the reference kernel."""
    timed: dict[str | None, list[float]] = {}
    for entry in entries:
        timed.setdefault(entry.board, []).append(entry.reference_us)
    measurement = table.measurement
    if entries:
        measurement.setdefault("reference_us", round(statistics.median(entry.reference_us for entry in entries), 3))
    normal = measurement["reference_us"]
    drift = max((max(times) / min(times) - 1 for times in timed.values()), default=0.0)
    table.device["date"] = date.today().isoformat()
    measurement["reference_drift"] = round(max(drift, measurement.get("reference_drift", 0.0)), 4)
    winners: dict[Address, Entry] = {}
    # The quickest comes last, and replaces the others.
    for entry in sorted(entries, key=lambda e: e.ratio, reverse=True):
        scale, point = normal / entry.reference_us, entry.point
        table.add(entry.key, replace(point, latency_us=point.latency_us * scale, spread_us=point.spread_us * scale))
        winners[entry.address] = entry
    boards = measurement.get("boards", {})
    for board, times in timed.items():
        if board is not None:
            points = sum(entry.board == board for entry in winners.values())
            quartiles = [round(float(us), 3) for us in np.quantile(times, (0.25, 0.5, 0.75))]
            boards[board] = {
                "points": points + boards.get(board, {"points": 0})["points"],
                "reference_us": quartiles,
            }
    if boards:
        measurement["boards"] = boards


def disagreement(boards: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A sentence that names the boards that are slower than the quickest by more than the noise of both.

    They are compared by the reference kernel alone, the only one that all of them run. Points are not biased by it, as
    each is divided by its own board's reference, but something is wrong with a board that differs.
    """
    if len(boards) < 2:
        return None
    medians = {board: facts["reference_us"][1] for board, facts in boards.items()}
    noise = {
        board: (facts["reference_us"][2] - facts["reference_us"][0]) / facts["reference_us"][1]
        for board, facts in boards.items()
    }
    quickest = min(medians, key=lambda board: medians[board])
    slow = [
        f"{board} takes {medians[board] / medians[quickest]:.2f} times as long as {quickest}"
        for board in sorted(boards)
        if medians[board] / medians[quickest] - 1 > TOLERANCE + noise[board] + noise[quickest]
    ]
    if not slow:
        return None
    return f"boards disagree on the reference kernel: {', '.join(slow)}; look at clock, cooling and power supply"
