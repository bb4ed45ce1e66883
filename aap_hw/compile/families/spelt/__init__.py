"""Operators that TVM's importer does not know, or gets wrong, written with others that it gets right.

Each function takes what the operator takes and returns what it returns, as far as a kernel reads it. The code of a
kernel is made from the function, and compared with the operator itself before it is used.
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
