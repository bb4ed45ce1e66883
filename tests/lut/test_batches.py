"""Proves in what order points are compiled and timed, and how boards side by side share them.

Nothing is compiled or measured: stand-ins note what they are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from aap_hw.compile.keys.key import KernelKey
from aap_hw.device.boards import Boards
from aap_hw.lut.profiling import POINTS_A_BATCH, _batches_of, _share


class RecordingPool:
    """Notes what is submitted and what is awaited."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def submit(self, points: list[int]) -> RecordingFuture:
        self._events.append(f"submit {points[0]}")
        return RecordingFuture(self._events, points[0])


@dataclass(frozen=True)
class RecordingFuture:
    events: list[str]
    first: int

    def result(self, timeout: float | None) -> int:
        assert timeout is None, "only what TVM lowers may take too long"
        self.events.append(f"await {self.first}")
        return self.first


class Point(int):
    """Stands for an address."""

    key = KernelKey.make("relu", (4, 4), 1)


class OneBoard:
    """This machine, or a board elsewhere; work is only handed over."""

    at_once = 1

    def __init__(self, elsewhere: bool) -> None:
        self.compile_meanwhile = elsewhere

    def share(self, items: Sequence[Any], work: Callable[[None, Any], None]) -> None:
        for item in items:
            work(None, item)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_next_points_compile_while_some_are_timed_only_on_another_machine(elsewhere: bool) -> None:
    events: list[str] = []
    points, boards, pool = [*map(Point, range(5 * POINTS_A_BATCH - 1))], OneBoard(elsewhere), RecordingPool(events)
    network = SimpleNamespace(described=str)
    _share(points, network, boards, pool, 2, lambda *given: events.append(f"time {given[-1]}"))  # type: ignore[arg-type]
    one, two, three = (
        [f"submit {number * POINTS_A_BATCH}" for number in numbers] for numbers in ((0, 1), (2, 3), (4,))
    )
    in_turns = [*one, "time [0, 16]", *two, "time [32, 48]", *three, "time [64]"]
    meanwhile = [*one, *two, *three, *(f"time [{number * POINTS_A_BATCH}]" for number in range(5))]
    submitted_or_timed = [event for event in events if not event.startswith("await")]
    assert submitted_or_timed == (meanwhile if elsewhere else in_turns)
    # Whatever is timed has been awaited.
    for moment, event in enumerate(events):
        if event.startswith("time"):
            assert {f"await {n}" for n in re.findall(r"\d+", event)} <= set(events[:moment])


@pytest.mark.parametrize("number", [1, 3, 26, 100, 401])
@pytest.mark.parametrize("at_once", [2, 3])
def test_boards_side_by_side_have_as_many_batches_each_of_as_many_points(number: int, at_once: int) -> None:
    boards = cast(Boards, SimpleNamespace(at_once=at_once))
    batches = _batches_of(list(range(number)), boards)  # type: ignore[arg-type]
    assert sorted(point for batch in batches for point in batch) == list(range(number))  # type: ignore[type-var]
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= min(POINTS_A_BATCH, min(sizes) + 1)
    assert len(batches) % at_once == 0 or sizes == [1] * number
