"""The journal of a profile in progress: every visit of a point is on disk before the next one begins.

One JSON line a visit behind a header line that says what the points depend on; of a point's visits the quickest counts.
A process that dies at any moment loses at most the visit in flight: the next one goes on with the visits that each
point has, and visits no point again that was settled. A last line that was cut short is dropped. One process at a time
has a journal.
"""

from __future__ import annotations

import fcntl
import json
import math
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple

from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.errors import UserError
from aap_hw.files import WriteError
from aap_hw.jsonlines import append_line
from aap_hw.lut.table import LatencyPoint


class Entry(NamedTuple):
    """One visit of a point, with the reference latency (µs) beside it, and where the board is if it was one."""

    key: KernelKey
    point: LatencyPoint
    reference_us: float
    board: str | None = None

    @property
    def address(self) -> Address:
        """The point that was visited."""
        return Address(self.key, self.point.widths)

    @property
    def ratio(self) -> float:
        """The point's latency in units of the reference kernel's: a slower clock slows both."""
        return self.point.latency_us / self.reference_us


class Journal:
    """Append-only record of visits."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.entries: list[Entry] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        except OSError as problem:
            raise UserError(
                f"cannot write {path}: {problem.strerror}; choose a folder that can be written for the table (--out of "
                "'aap-hw profile')"
            ) from problem
        try:
            self._take_up(identity)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def beside(cls, table: Path, identity: dict[str, Any]) -> Journal:
        """The journal of the points that are on their way into a table's file."""
        return cls(table.with_name(table.name + ".journal"), identity)

    def record(self, entry: Entry) -> None:
        """Add one visit of a point; it is on disk when this returns.

        Raises
        ------
        WriteError : it could not be written; the journal is as it was before.
        """
        where = {} if entry.board is None else {"board": entry.board}
        widths, *timing = astuple(entry.point)
        point = [*widths, *timing]
        self._append({"kernel": str(entry.key), "point": point, "reference_us": entry.reference_us, **where})
        self.entries.append(entry)

    def close(self) -> None:
        """Close the file, and let other processes have it; it stays if it holds points."""
        if not self._file.closed and not self.entries:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def empty(self) -> None:
        """Forget all points, which are in the table by now; no other process has the file before it is closed."""
        self._file.truncate(0)
        self.entries = []

    def _take_up(self, identity: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise UserError(
                f"another process is profiling into {self.path}; wait for it, or profile into another file (--out of "
                "'aap-hw profile')"
            ) from problem
        self._file.seek(0)
        # What is behind the last line end was being written when the process died.
        *whole, cut_short = (text := self._file.read()).split(b"\n")
        if whole:
            header, *points = [self._value(line) for line in whole]
            if header != identity:
                differing = sorted(k for k in header.keys() | identity.keys() if header.get(k) != identity.get(k))
                raise UserError(
                    f"{self.path} holds the points of an interrupted profile with another {', '.join(differing)}; "
                    "finish it with the same settings, or delete the file to begin anew"
                )
            self.entries = [self._entry(value) for value in points]
        self._file.truncate(len(text) - len(cut_short))
        if not whole:
            try:
                self._append(identity)
            except WriteError:
                self.path.unlink()
                raise

    def _append(self, value: dict[str, Any]) -> None:
        try:
            append_line(self._file, value)
        except OSError as problem:
            raise WriteError(f"cannot write {self.path}: {problem.strerror}; make room and go on") from problem

    def _value(self, line: bytes) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise self._damaged(problem) from problem
        if not isinstance(value, dict):
            raise self._damaged(f"{line[:40]!r} is not an entry")
        return value

    def _entry(self, value: dict[str, Any]) -> Entry:
        try:
            key, reference_us = KernelKey.parse(value["kernel"]), float(value["reference_us"])
            width_in, width_out, latency_us, spread_us, samples = value["point"]
            widths = int(width_in), int(width_out)
            point = LatencyPoint(widths, float(latency_us), float(spread_us), int(samples))
        except (ValueError, KeyError, TypeError, UserError) as problem:
            raise self._damaged(problem) from problem
        if not (0 < latency_us < math.inf and 0 <= spread_us < math.inf and 0 < reference_us < math.inf):
            raise self._damaged(f"{latency_us} µs is not a latency")
        board = value.get("board")
        return Entry(key, point, reference_us, None if board is None else str(board))

    def _damaged(self, problem: object) -> UserError:
        return UserError(f"{self.path} is damaged ({problem}); delete it to begin anew")
