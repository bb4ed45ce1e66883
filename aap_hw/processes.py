"""Processes for compilers and for sessions with boards, forked from one that has already imported PyTorch and TVM.

Importing them takes seconds. One process does it when the first of these processes is needed. All are forked from it,
so that the later ones start at once.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from aap_hw.errors import UserError

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["aap_hw.device.session", "aap_hw.lut.compiling"])


class CannotStart(UserError):  # noqa: N818 - what the machine cannot do
    """This machine has no room for another process, whichever work or board it was for."""


@contextmanager
def ctrl_c_blocked() -> Iterator[None]:
    """Start processes that Ctrl-C does not interrupt, although it reaches the whole process group.

    Nor do they run the caller's script again, which would begin all of its work anew.

    This process decides what becomes of their work: it is interrupted itself when the block ends.

    Raises
    ------
    CannotStart : a process cannot be started, for want of memory or because there are too many.
    """
    pressed: list[int] = []
    # Another thread may be given the signal, and Python then runs the handler in this one all the same.
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number)) if is_main else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _main_left_out():
            yield
    except (EOFError, ConnectionError) as problem:  # the one to fork from ends if it cannot
        raise CannotStart(
            "another process cannot be started, most likely for want of memory or because this user has too many; "
            "close other programs, or allow more processes (ulimit -u)"
        ) from problem
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_main:
            signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _main_left_out() -> Iterator[None]:
    """Start processes as if the main program had no file, which multiprocessing would run again in each."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program
