"""Code that CPUs and GPUs share: arguments of kernels, expressions of single values, and definitions of kernels.

Importing the package fills the table of definitions.
"""

from aap_hw.compile.code import elementwise, fused, movement, order, pooling, resizing, sampling, strided
from aap_hw.compile.code.definition import DEFINITIONS, Definition

__all__ = [
    "DEFINITIONS",
    "Definition",
    "elementwise",
    "fused",
    "movement",
    "order",
    "pooling",
    "resizing",
    "sampling",
    "strided",
]
