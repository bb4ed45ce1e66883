"""Sending one of this process's standard streams somewhere else, output of libraries in C included.

Python's own streams are not covered: their text goes to the descriptor once they are flushed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sent(descriptor: int, to: int) -> Iterator[None]:
    """Let everything written to one descriptor go to another until the block ends.

    Raises
    ------
    OSError : one of them is closed.
    """
    _flush()
    kept = os.dup(descriptor)
    try:
        os.dup2(to, descriptor)
        yield
    finally:
        _flush()
        os.dup2(kept, descriptor)
        os.close(kept)


def _flush() -> None:
    """Write out what C's streams hold back, or it would go where the descriptor leads later."""
    ctypes.CDLL(None).fflush(None)
