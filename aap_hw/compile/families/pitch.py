"""The distance between neighbouring pixels in memory: no gap, or a multiple of a vector if a key says ``pitched``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import BYTES

if TYPE_CHECKING:
    from aap_hw.compile.keys.target import CpuTarget

# Half a cache line. Longer vectors are loaded in halves.
LARGEST_STEP_BYTES = 32

End = Literal["input", "output"]


def pitch_of(key: KernelKey, end: End, channels: int, target: CpuTarget) -> int:
    """Values from one pixel to the next of what a kernel reads or makes."""
    step = pitch_step(key, end, target)
    return math.ceil(channels / step) * step


def pitch_step(key: KernelKey, end: End, target: CpuTarget) -> int:
    """The number of values of which the pitch is a multiple; 1 without ``pitched``."""
    size = BYTES[key.types.read if end == "input" else key.types.made]
    return min(target.vector_bytes, LARGEST_STEP_BYTES) // size if end in key.pitched else 1
