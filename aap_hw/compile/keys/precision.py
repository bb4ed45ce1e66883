"""What kernels compute in: a closed list of the combinations of types that there is code for."""

from __future__ import annotations

from dataclasses import dataclass

BYTES = {"float32": 4}
"""Size of a number, by the name of its type."""


@dataclass(frozen=True)
class Precision:
    """The types of a kernel's numbers.

    Attributes
    ----------
    read : of what it reads but for constants.
    weight : of its weight as it is packed.
    sum : what products are added up in, and what bias and epilogue are computed in.
    made : of what it makes.
    """

    read: str
    weight: str
    sum: str
    made: str


FLOAT32 = "float32"
PRECISIONS = {FLOAT32: Precision(FLOAT32, FLOAT32, FLOAT32, FLOAT32)}
"""Precisions by the name that a kernel key has for them."""
