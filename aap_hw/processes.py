"""Processes beside this one, for compilers and for sessions with boards: forks of one that has imported all they need.

PyTorch and TVM take seconds to import. One process does it, at the first need, and forks whatever is started from then
on, which is there at once.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["aap_hw.device.session", "aap_hw.lut.compiling"])


@contextmanager
def ctrl_c_blocked() -> Iterator[None]:
    """Start processes that Ctrl-C, which reaches the whole process group, does not disturb, not even while they import.

    What becomes of their work is for this process to decide, which is interrupted when this ends.
    """
    pressed: list[int] = []
    # Another thread may be given the signal, and Python then runs the handler in this one all the same.
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number)) if is_main else None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if is_main:
            signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)
