"""What a processor core does in a cycle, by LLVM's name of it.

Sources: Arm's software optimisation guides of the Cortex-A72 and the Cortex-A76, AMD's of the families 19h and 1Ah, and
LLVM's scheduling models (for the Cortex-A72 that of the Cortex-A57, where a multiply-add of 128 bits takes both
arithmetic units).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Core:
    """Limits of a core; counts are of a cycle, and of whatever its vector units do at once.

    Attributes
    ----------
    width : instructions that begin.
    multiply_adds, arithmetic : vector multiply-adds, and vector operations of any kind.
    loads, stores, accesses : loads and stores, and both together.
    latency : cycles until a sum can be added to again.
    l2_bytes, l3_bytes : bytes that the second and the third cache bring.
    """

    width: float
    multiply_adds: float
    arithmetic: float
    loads: float
    stores: float
    accesses: float
    latency: float
    l2_bytes: float
    l3_bytes: float


CORES = {
    "cortex-a72": Core(3, 1, 1, 1, 1, 2, 4, 16, 16),
    "cortex-a76": Core(4, 2, 2, 2, 2, 2, 2, 32, 16),
    "znver4": Core(6, 2, 4, 2, 1, 3, 4, 32, 32),
    "znver5": Core(8, 2, 4, 2, 1, 3, 4, 64, 32),
}
