"""What the code of both kinds of devices is made of: arguments, expressions of single values, and definitions.

Importing the package fills the table of definitions.
"""

from aap_hw.compile.code import elementwise, fused, movement, pooling, resizing, sampling, strided
from aap_hw.compile.code.definition import DEFINITIONS, Definition

__all__ = [
    "DEFINITIONS",
    "Definition",
    "elementwise",
    "fused",
    "movement",
    "pooling",
    "resizing",
    "sampling",
    "strided",
]
