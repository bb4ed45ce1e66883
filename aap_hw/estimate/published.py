"""Latencies that others published for boards, with their own engines, and what is estimated of the same networks.

None of it goes into a table: it tells how far off estimates may be on a board that nobody here has measured.
`benchmarks/published_latencies.py` writes the estimates into the file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.json")


@functools.cache
def published() -> Mapping[str, Any]:
    """The file: ``sources`` by name, ``methods`` by device, and ``rows`` of one latency each."""
    found: Mapping[str, Any] = json.loads(FILE.read_text("utf-8"))
    return found


def ratios(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Estimated over published, by the quickest engine of each network, precision and number of threads."""
    cases: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if row["estimated_ms"] is not None:
            case = row["device"], row["model"], row["precision"], row["threads"]
            ratio = row["estimated_ms"] / row["ms"]
            cases[case] = max(ratio, cases.get(case, ratio))
    return list(cases.values())


def range_beside(device: str, threads: int, method: str) -> tuple[float, float] | None:
    """The least and the largest of `ratios` on a device with so many threads; None if nothing is published of it.

    Figures of a method are those of no other, nor of another board that has the same name.
    """
    told = published()
    if told["methods"].get(device) != method:
        return None
    found = ratios(row for row in told["rows"] if row["device"] == device and row["threads"] in (threads, None))
    return (min(found), max(found)) if found else None
