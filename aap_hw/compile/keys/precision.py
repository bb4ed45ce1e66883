"""What networks and their kernels compute in.

A network is asked for in one of a few precisions. Its kernels come in a closed list of combinations of types that there
is code for: a network in int8 has kernels in several of them, and some in float32.

A number in half precision, bfloat16 or float16, is one of float32 that was rounded to be stored: sums and epilogues
stay in float32. A uint8 activation stands for ``scale * (number - zero_point)``, an int8 weight for ``scale * number``
with a scale for each output channel. Scales and zero points are constants of a kernel, no part of its key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

NetworkPrecision = Literal["fp32", "half", "int8", "mixed"]
"""What a network is asked for in, as `--precision` has it."""
PLANNED_PRECISIONS: tuple[NetworkPrecision, ...] = get_args(NetworkPrecision)
"""What a plan may be asked for."""
NETWORK_PRECISIONS: tuple[NetworkPrecision, ...] = ("fp32", "half", "int8")
"""What a network can be compiled and deployed in."""
FP32: Final = "fp32"
HALF: Final = "half"
INT8: Final = "int8"
"""Of a network, and of its kernels that read bytes and make bytes."""
MIXED: Final = "mixed"
"""Of a network whose channel groups are given float32 or int8 by a plan. Once it is planned, it is one in int8 some of
whose layers stay in float32."""

EXPORTED_PRECISIONS: tuple[NetworkPrecision, ...] = (FP32, INT8)
"""Those that networks can be written to a file in that other programs run."""


def in_precision(precision: NetworkPrecision) -> str:
    """Such as `` in int8``, to put behind what a network is called; empty for float32."""
    return {FP32: "", HALF: " in half precision", MIXED: " in mixed precision"}.get(precision, f" in {precision}")


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint16": 2, "int32": 4, "int16": 2, "uint8": 1, "int8": 1}
"""Size of a number, by the name of its type."""


@dataclass(frozen=True)
class Precision:
    """The types of a kernel's numbers.

    Attributes
    ----------
    read : of what it reads but for constants.
    weight : of its weight as it is packed.
    sum : what products are added up in. Bias and epilogue are computed in float32.
    made : of what it makes.
    """

    read: str
    weight: str
    sum: str
    made: str

    @property
    def is_quantized(self) -> bool:
        """Whether integers stand for what the kernel reads or makes."""
        return "uint8" in (self.read, self.made)

    @property
    def is_half(self) -> bool:
        """Whether what the kernel reads or makes is stored in half precision."""
        return not {self.read, self.made}.isdisjoint(HALVES)


@dataclass(frozen=True)
class Scale:
    """What the numbers of a uint8 tensor stand for: ``scale * (number - zero_point)``."""

    scale: float
    zero_point: int


BFLOAT16, FLOAT16 = "bfloat16", "float16"
HALVES = (BFLOAT16, FLOAT16)
"""The two kinds of half precision. Which of them a network in `HALF` is in depends on the device."""
FLOAT32, INT8_FLOAT32, FLOAT32_INT8 = "float32", "int8_float32", "float32_int8"
PRECISIONS = {
    FLOAT32: Precision(FLOAT32, FLOAT32, FLOAT32, FLOAT32),
    INT8: Precision("uint8", "int8", "int32", "uint8"),
    INT8_FLOAT32: Precision("uint8", "int8", "int32", FLOAT32),
    FLOAT32_INT8: Precision(FLOAT32, FLOAT32, FLOAT32, "uint8"),
    **{half: Precision(half, half, FLOAT32, half) for half in HALVES},
    **{f"{half}_{FLOAT32}": Precision(half, half, FLOAT32, FLOAT32) for half in HALVES},
    **{f"{FLOAT32}_{half}": Precision(FLOAT32, FLOAT32, FLOAT32, half) for half in HALVES},
}
"""Precisions by the name that a kernel key has for them. One of two names turns what it reads into the other."""
