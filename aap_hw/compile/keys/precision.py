"""What networks and their kernels compute in.

A network is asked for in one of a few precisions. Its kernels come in a closed list of combinations of types that there
is code for: a network in int8 has kernels in several of them, and some in float32.

A number in half precision, bfloat16 or float16, is one of float32 that was rounded to be stored: sums and epilogues
stay in float32. A uint8 activation stands for ``scale * (number - zero_point)``, an int8 weight for ``scale * number``
with a scale for each output channel. Scales and zero points are constants of a kernel, no part of its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from aap_hw.errors import UserError, closest

NetworkPrecision = Literal["fp32", "half", "int8", "int8,half", "mixed", "mixed:int8,half"]
"""What a network computes in, or what a plan is asked for."""
PLANNED_PRECISIONS: tuple[NetworkPrecision, ...] = ("fp32", "half", "int8", "mixed", "mixed:int8,half")
"""What a plan may be asked for, as `--precision` has it."""
NETWORK_PRECISIONS: tuple[NetworkPrecision, ...] = ("fp32", "half", "int8")
"""What a network can be compiled and deployed in."""
FP32: Final = "fp32"
HALF: Final = "half"
INT8: Final = "int8"
"""Of a network, and of its kernels that read bytes and make bytes."""
INT8_HALF: Final = "int8,half"
"""Of a network in int8 that computes in half precision where one in `INT8` computes in float32."""
OTHERS: Mapping[str, NetworkPrecision] = {INT8: FP32, INT8_HALF: HALF}
"""Networks in int8, and what those of their layers are in that are not."""
MIXED: Final = "mixed"
"""Of a network whose channel groups are given int8 or float32 by a plan."""
MIXED_HALF: Final = "mixed:int8,half"
"""The same with half precision in place of float32."""
MIXTURES: Mapping[str, NetworkPrecision] = {MIXED: INT8, MIXED_HALF: INT8_HALF}
"""Networks whose groups are given precisions by a plan, and what they are once they are planned: in int8, but for some
layers."""

EXPORTED_PRECISIONS: tuple[NetworkPrecision, ...] = (FP32, INT8)
"""Those that networks can be written to a file in that other programs run."""


_IN = {
    FP32: "",
    HALF: " in half precision",
    INT8_HALF: " in int8 and half precision",
    MIXED: " in mixed precision",
    MIXED_HALF: " in int8 and half precision",
}


def in_precision(precision: NetworkPrecision) -> str:
    """Such as `` in int8``, to put behind what a network is called; empty for float32."""
    return _IN.get(precision, f" in {precision}")


def mixed_precisions(mixture: NetworkPrecision) -> tuple[NetworkPrecision, NetworkPrecision]:
    """The two precisions that a mixture is of, the more exact one last."""
    return INT8, OTHERS[MIXTURES[mixture]]


def unpruned_in(precision: NetworkPrecision) -> NetworkPrecision:
    """What the unpruned network is in whose latency budgets are shares of."""
    return mixed_precisions(precision)[-1] if precision in MIXTURES else precision


def is_with_half(precision: NetworkPrecision) -> bool:
    """Whether a network in a precision has kernels in half precision."""
    return HALF in (precision, OTHERS.get(MIXTURES.get(precision, precision)))


def mixture_of(text: str) -> NetworkPrecision:
    """The mixture of the precisions that stand behind the colon of a text such as ``mixed:half,int8``.

    Raises
    ------
    UserError : no plan mixes these, or there is no such precision.
    """
    asked = {name.strip() for name in text.partition(":")[2].split(",")}
    for name in sorted(asked):
        if name not in NETWORK_PRECISIONS:
            instead = closest(name, NETWORK_PRECISIONS)
            raise UserError(f"--precision {text}: mix int8 with half or fp32; '{name}' is no precision{instead}")
    for mixture in (MIXED, MIXED_HALF):
        if asked == set(mixed_precisions(mixture)):
            return mixture
    if len(asked) == 1:
        reason = f"one precision leaves nothing to choose; give --precision {min(asked)}, or name two"
    elif INT8 in asked:
        reason = "plans mix two precisions so far; give mixed:int8,half, as half loses next to nothing"
    else:
        reason = (
            "plans mix int8 with another; give --precision half, which loses next to nothing and is faster than fp32"
        )
    raise UserError(f"--precision {text}: {reason}")


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
    **{f"{INT8}_{half}": Precision("uint8", "int8", "int32", half) for half in HALVES},
    **{half: Precision(half, half, FLOAT32, half) for half in HALVES},
    **{f"{half}_{FLOAT32}": Precision(half, half, FLOAT32, FLOAT32) for half in HALVES},
    **{f"{FLOAT32}_{half}": Precision(FLOAT32, FLOAT32, FLOAT32, half) for half in HALVES},
}
"""Precisions by the name that a kernel key has for them. One of two names turns what it reads into the other."""
