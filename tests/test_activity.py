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
    with told() as lines:
        for number in range(100):
            with doing(f"step {number}"):
                time.sleep(0.02)
    assert 3 <= len(lines) < 60


def test_the_same_sentence_comes_ever_more_seldom() -> None:
    begun, when = time.monotonic(), list[float]()
    lines = Lines()

    def say(line: str) -> None:
        when.append(time.monotonic() - begun)
        lines(line)

    with telling(say), doing("waiting"):
        lines.wait_for(4)
    _, second, third, fourth = when
    assert third - second >= 0.1
    assert fourth - third >= 0.2


def test_nothing_is_told_when_nothing_takes_long() -> None:
    with told() as lines:
        time.sleep(0.2)
        with doing("what is over at once"):
            pass
        time.sleep(0.1)
    assert lines == []


def test_whoever_listens_last_is_told_and_nobody_where_silence_is_asked_for() -> None:
    with told() as outer:
        with told() as inner, doing("one"):
            inner.wait_for(1)
        with telling(None), doing("two"):
            time.sleep(0.2)
        with doing("three"):
            assert outer.wait_for(1) == ["three"]


def test_work_goes_on_when_nobody_can_be_told() -> None:
    def closed(line: str) -> None:
        raise ValueError("I/O operation on closed file")

    with telling(closed), doing("one"):
        time.sleep(0.1)
