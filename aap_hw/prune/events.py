"""What a run tells while it goes on, and the log of it in the run's folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aap_hw.jsonlines import JsonLines, read_lines

EVENTS = "events.jsonl"
# Events of one process: a run that is resumed does not send them again.
OF_ONE_PROCESS = ("resumed", "waiting")


@dataclass(frozen=True)
class Event:
    """Something that happened in a run, for a screen and the log: a name and its figures.

    In this order: ``start`` once it is certain that there is something to do, then for each round ``measured`` for
    each plan that is tried on the device, ``cut``, ``epoch`` for each epoch, ``quantised`` if its network is or is in
    half precision, and ``round``; at last ``tested`` if the test split decided nothing. ``waiting`` comes whenever a
    board does not answer or is taken, and ``step`` for each batch of training, which is not logged.
    """

    name: str
    figures: dict[str, Any]


OnEvent = Callable[[Event], None]


class EventLog:
    """A run's log, ``events.jsonl``: one line an event, with the time it happened.

    A run that is resumed sends the events of before again; they are not written twice.
    """

    def __init__(self, folder: Path) -> None:
        self._file = JsonLines(folder / EVENTS)
        self._known = sum(line.get("event") not in OF_ONE_PROCESS for line in self._file.lines)
        if self._known:
            self._append({"event": "resumed"})

    def add(self, event: Mapping[str, Any]) -> None:
        """Add an event, unless it is one of before."""
        if self._known and event["event"] not in OF_ONE_PROCESS:
            self._known -= 1
        else:
            self._append(event)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, event: Mapping[str, Any]) -> None:
        self._file.append({"time": round(time.time(), 3), **event})


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events in a run's log, with the time of each; none if it has no log.

    Raises
    ------
    UserError : the log cannot be read, or is damaged.
    """
    return read_lines(folder / EVENTS)
