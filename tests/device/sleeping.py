"""A clock for the boards of ``tests.device.servers``: kernels sleep instead of running, so that two boards are two even
on one core. It takes the place of TVM's time evaluator in the server; everything else there is as ever.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SleepingClock:
    """Says of every call of a function that it takes so many microseconds, and takes them."""

    us: float

    def __call__(self, module: object, name: str, kind: int, index: int, number: int, repeats: int, *_: Any) -> Any:
        return self._timed(number, repeats)

    def _timed(self, number: int, repeats: int) -> Callable[..., bytes]:
        def run(*_: object) -> bytes:
            time.sleep(number * repeats * self.us / 1e6)
            return struct.pack(f"@{repeats}d", *[self.us / 1e6] * repeats)

        return run
