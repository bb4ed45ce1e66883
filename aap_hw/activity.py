"""Telling the user what a command is doing, once it has been silent for ten seconds.

Code that may take long says what it does, ``with doing("tracing the network"):``, at no cost if nobody listens. A
command that can tell somebody does its work within `telling`. Work that shows its own progress, such as measuring and
training, is not covered here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

# How long a person waits without wondering, and the longest pause before the same sentence is repeated.
PATIENCE_S, LONGEST_S = 10.0, 60.0
# Work that has just begun may be over before its sentence is read.
SHORTEST_S = 1.0

Say = Callable[[str], None]
Entry = TypeVar("Entry")


@dataclass(eq=False)
class _Doing:
    sentence: str
    since: float


@dataclass(eq=False)
class _Listener:
    say: Say | None


# Of this process: the work that goes on, innermost last, and the listeners, of which only the last is told.
_doing: list[_Doing] = []
_listeners: list[_Listener] = []
_changed = threading.Condition()


@contextmanager
def doing(sentence: str) -> Iterator[None]:
    """Say what the block does, as in ``"compiling the network"``."""
    with _during(_doing, _Doing(sentence, time.monotonic())):
        yield


@contextmanager
def telling(say: Say | None) -> Iterator[None]:
    """Tell this listener, and no earlier one, what takes long in the block; None tells nobody."""
    listener = _Listener(say)
    with _during(_listeners, listener):
        if say is not None:
            threading.Thread(target=_watch, args=(listener, say), daemon=True).start()
        yield


@contextmanager
def _during(entries: list[Entry], entry: Entry) -> Iterator[None]:
    with _changed:
        entries.append(entry)
        _changed.notify_all()
    try:
        yield
    finally:
        with _changed:
            entries.remove(entry)
            _changed.notify_all()


def _watch(listener: _Listener, say: Say) -> None:
    """Tell one listener; runs in its own thread, as all others may be busy."""
    last, told_at, pause_s = "", time.monotonic(), PATIENCE_S
    with _changed:
        while listener in _listeners:
            if not _doing or _listeners[-1] is not listener:
                _changed.wait()
                continue
            current, now = _doing[-1], time.monotonic()
            is_old = current.sentence == last
            due = max(told_at + (pause_s if is_old else PATIENCE_S), current.since + SHORTEST_S)
            if now < due:
                _changed.wait(due - now)
                continue
            last, told_at, pause_s = current.sentence, now, min(2 * pause_s, LONGEST_S) if is_old else PATIENCE_S
            seconds = now - current.since
            with suppress(OSError, ValueError):  # the listener's stream is closed
                say(current.sentence + (f" ({seconds:.0f} s so far)" if seconds >= PATIENCE_S else ""))


def is_silenced() -> bool:
    """Whether nobody wants to be told what takes long."""
    with _changed:
        return bool(_listeners) and _listeners[-1].say is None
