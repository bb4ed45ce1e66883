"""Processes beside this one, for compilers and for sessions with boards: forks of one that has imported all they need.

PyTorch and TVM take seconds to import. One process does it, at the first need, and forks whatever is started from then
on, which is there at once.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["aap_hw.device.session", "aap_hw.lut.compiling"])


@contextmanager
def ctrl_c_blocked() -> Iterator[None]:
    """Start processes that Ctrl-C, which reaches the whole process group, does not disturb, not even while they import.

    What becomes of their work is for this process to decide.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
