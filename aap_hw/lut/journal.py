"""The journal of a profile in progress: every measured point is on disk before the next one begins.

One JSON line a point behind a header line that says what the points depend on. A process that dies at any moment
loses at most the point in flight; a last line that was cut short is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

from aap_hw.compile.kernel import KernelKey
from aap_hw.errors import UserError
from aap_hw.lut.table import LatencyPoint

Entry = tuple[KernelKey, LatencyPoint, float]


class Journal:
    """Append-only record of points with the reference latency (µs) that was timed beside each."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.entries: list[Entry] = []
        text = _read(path)
        lines = text.splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if whole:
            self._check(json.loads(whole[0]), identity)
            self.entries = list(self._parse(whole[1:]))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+" if path.exists() else "w+", encoding="utf-8")
            self._file.seek(sum(len(line.encode()) for line in whole))
            self._file.truncate()
        except OSError as problem:
            raise UserError(
                f"cannot write {path}: {problem.strerror}; choose a folder that can be written with --out"
            ) from problem
        if not whole:
            self._append(identity)

    def record(self, key: KernelKey, point: LatencyPoint, reference_us: float) -> None:
        """Add one measured point; it is on disk when this returns."""
        self.entries.append((key, point, reference_us))
        self._append({"kernel": str(key), "point": astuple(point), "reference_us": reference_us})

    def close(self) -> None:
        """Close the file and keep it."""
        self._file.close()

    def remove(self) -> None:
        """Close and delete the file: its points are in the table."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _append(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _check(self, header: dict[str, Any], identity: dict[str, Any]) -> None:
        if header != identity:
            differing = sorted(k for k in header.keys() | identity.keys() if header.get(k) != identity.get(k))
            raise UserError(
                f"{self.path} holds the points of an interrupted profile with another {', '.join(differing)}; "
                "finish it with the same settings, or delete the file to begin anew"
            )

    def _parse(self, lines: list[str]) -> Iterator[Entry]:
        for line in lines:
            try:
                value = json.loads(line)
                yield (
                    KernelKey.parse(value["kernel"]),
                    LatencyPoint(*value["point"]),
                    float(value["reference_us"]),
                )
            except (ValueError, KeyError, TypeError) as problem:
                raise UserError(f"{self.path} is damaged ({problem}); delete it to begin anew") from problem


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"cannot read {path}: {problem}; delete it to begin anew") from problem
