"""What long benchmarks keep: finished rows for good, and of the accuracy benchmark the training of an unfinished one.

Rows are text, to be committed as they come. An unfinished training lies in a folder of its own: several processes may
work on one benchmark, each on other trainings, and any of them may be killed at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aap_hw.train.checkpoint import TrainState


class Journal:
    """Rows that are finished, one JSON object a line, each written as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows by now, those of other processes among them."""
        found = []
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else ():
            try:
                found.append(json.loads(line))
            except ValueError:  # a line that was being written when the process was killed
                continue
        return found

    def find(self, **wanted: Any) -> dict[str, Any] | None:
        """The latest row with these values."""
        return next((row for row in reversed(self.rows) if wanted.items() <= row.items()), None)

    def add(self, row: dict[str, Any]) -> None:
        """Write a row, on a line of its own even if a killed process left half of one."""
        before = self._path.read_bytes() if self._path.exists() else b""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(("\n" if before[-1:] not in (b"", b"\n") else "") + json.dumps(row) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


class Unfinished:
    """The checkpoint of one training, and the right to go on with it."""

    def __init__(self, folder: Path, what: Mapping[str, Any]) -> None:
        text = json.dumps(what, sort_keys=True)
        self._path = folder / f"{what['model']}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.safetensors"

    @contextmanager
    def taken(self) -> Iterator[bool]:
        """Whether no other process is at it; none will be meanwhile."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    @property
    def state(self) -> TrainState | None:
        """Where it is to go on."""
        from aap_hw.train.checkpoint import TrainState

        return TrainState.load(self._path, "delete it, and the training begins anew")

    def save(self, state: TrainState) -> None:
        """Keep how far it is."""
        state.save(self._path)

    def remove(self) -> None:
        """It is finished."""
        for path in (self._path, self._path.with_suffix(".lock")):
            path.unlink(missing_ok=True)
