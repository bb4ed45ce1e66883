"""What a command is at, told when nothing has been heard of it for ten seconds.

Whatever may take long says what it does, ``with doing("tracing the network"):``, which costs nothing where nobody
listens. A command with somebody to tell does its work within `telling`. What shows a progress of its own, such as
measuring and training, is not covered here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

# How long a person waits without wondering, and how seldom the same sentence is told again.
PATIENCE_S, LONGEST_S = 10.0, 60.0
# What has just begun may be over before it is read.
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


# Of this process: what is being done, the innermost last, and who is told, only the last of them.
_doing: list[_Doing] = []
_listeners: list[_Listener] = []
_changed = threading.Condition()


@contextmanager
def doing(sentence: str) -> Iterator[None]:
    """Say what is done until the block ends, as in ``"compiling the network"``."""
    with _during(_doing, _Doing(sentence, time.monotonic())):
        yield


@contextmanager
def telling(say: Say | None) -> Iterator[None]:
    """Tell a listener what takes long in the block, instead of one that was told before; with None nobody is told."""
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
    """Tell one listener, from a thread of its own, as all others may be busy."""
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
            with suppress(OSError, ValueError):  # nobody can be told any more
                say(current.sentence + (f" ({seconds:.0f} s so far)" if seconds >= PATIENCE_S else ""))
