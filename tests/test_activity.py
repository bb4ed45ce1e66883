"""What takes long is told after a while of silence, the innermost of what is done, and told again ever more seldom."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from aap_hw import activity
from aap_hw.activity import doing, telling


class Lines(list[str]):
    """Sentences that were told, which can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._more = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._more:
            self.append(line.partition(" (")[0])
            self._more.notify_all()

    def wait_for(self, count: int) -> list[str]:
        with self._more:
            assert self._more.wait_for(lambda: len(self) >= count, timeout=20)
        return list(self)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "PATIENCE_S", 0.05)
    monkeypatch.setattr(activity, "SHORTEST_S", 0.01)


@contextmanager
def told() -> Iterator[Lines]:
    lines = Lines()
    with telling(lines):
        yield lines


def test_the_innermost_is_told_and_then_what_it_was_a_part_of() -> None:
    with told() as lines, doing("compiling the network"):
        with doing("compiling kernel 3"):
            assert lines.wait_for(1) == ["compiling kernel 3"]
        assert lines.wait_for(2)[1:] == ["compiling the network"]


def test_many_short_steps_are_told_as_one_long_one_would_be() -> None:
    begun = time.monotonic()
    with told() as lines:
        for number in range(50):
            with doing(f"step {number}"):
                time.sleep(0.02)
    # However slow the machine is, a sentence comes at the earliest a patience after the one before it.
    assert 3 <= len(lines) <= (time.monotonic() - begun) / activity.PATIENCE_S


def test_the_same_sentence_comes_ever_more_seldom() -> None:
    begun = time.monotonic()
    with told() as lines, doing("waiting"):
        lines.wait_for(4)
    # After pauses of 0.05, 0.05, 0.1 and 0.2 s, which a slow machine makes longer.
    assert time.monotonic() - begun >= 0.4


def test_nothing_is_told_of_no_work_nor_of_work_that_has_just_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "SHORTEST_S", 60.0)
    with told() as lines:
        time.sleep(0.15)
        with doing("what has just begun"):
            time.sleep(0.15)
    assert lines == []


def test_whoever_listens_last_is_told_and_nobody_where_silence_is_asked_for() -> None:
    with told() as outer:
        with told() as inner, doing("one"):
            inner.wait_for(1)
        with telling(None), doing("two"):
            time.sleep(0.2)
        with doing("three"):
            assert outer.wait_for(1) == ["three"]


def test_work_and_telling_go_on_where_a_line_cannot_be_told() -> None:
    lines = Lines()

    def closed_at_first(line: str) -> None:
        lines(line)
        if len(lines) == 1:
            raise ValueError("I/O operation on closed file")

    with telling(closed_at_first), doing("one"):
        assert lines.wait_for(2) == ["one", "one"]
