"""Operators that TVM's importer lacks or gets wrong, spelt out with others that it gets right.

Each function has the operator's arguments and returns its results, or those of them that kernels read. Before its code
is used for a kernel, it is compared with the operator itself.
"""

from collections.abc import Callable
from typing import Any

from aap_hw.compile.families.spelt.arithmetic import ARITHMETIC
from aap_hw.compile.families.spelt.movement import MOVEMENT
from aap_hw.compile.families.spelt.norms import NORMS
from aap_hw.compile.families.spelt.order import ORDER
from aap_hw.compile.families.spelt.resizing import RESIZING
from aap_hw.compile.families.spelt.sampling import SAMPLING
from aap_hw.compile.families.spelt.windows import WINDOWS

# By the operator's name, without namespace and overload.
SPELT_OUT: dict[str, Callable[..., Any]] = {
    **ARITHMETIC,
    **MOVEMENT,
    **NORMS,
    **ORDER,
    **RESIZING,
    **SAMPLING,
    **WINDOWS,
}
