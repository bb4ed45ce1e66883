"""How far apart the pixels of an image lie: side by side, or whole vectors apart where a key says ``pitched``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from aap_hw.compile.keys.key import KernelKey

if TYPE_CHECKING:
    from aap_hw.compile.keys.target import CpuTarget

# Floats of half a cache line. Longer vectors are loaded in halves.
LARGEST_STEP = 8

End = Literal["input", "output"]


def pitch_of(key: KernelKey, end: End, channels: int, target: CpuTarget) -> int:
    """Floats from one pixel to the next of what a kernel reads or makes."""
    step = pitch_step(key, end, target)
    return math.ceil(channels / step) * step


def pitch_step(key: KernelKey, end: End, target: CpuTarget) -> int:
    """Pixels begin at multiples of so many floats."""
    return min(target.lanes, LARGEST_STEP) if end in key.pitched else 1
