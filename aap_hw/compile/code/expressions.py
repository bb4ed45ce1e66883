"""Activations as expressions of one value, made of arithmetic that LLVM turns into vector instructions.

They are computed in float32, whatever type the value is read from and written as. TVM's own ``exp`` becomes a call of
the C library for every single value: 12 times slower with AVX-512.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from aap_hw.compile.families import elementwise
from aap_hw.compile.keys.precision import FLOAT32

# ln 2 in two parts: products of the first with whole numbers below 2^9 are exact in float32.
LN2_HIGH = 0.693359375
LN2_LOW = math.log(2) - LN2_HIGH
# Arguments beyond these give powers of two that float32 cannot hold as normal numbers.
EXP_LOWEST, EXP_HIGHEST = -87.0, 88.0
EXP_DEGREE = 6
# Of float32: the largest number, and what may be added to it without coming nearer to what would be the next one.
LARGEST = (2 - 2.0**-23) * 2.0**127
ROUNDING = 2.0**103


def number(value: float, type_: str = FLOAT32) -> Any:
    """A constant. What a key spells as 3.4028235e+38, which is above float32's largest number, is that number."""
    if type_ == FLOAT32 and LARGEST < abs(value) < LARGEST + ROUNDING:
        value = math.copysign(LARGEST, value)
    return tirx.const(value, type_)


def exp(x: Any, sign: int = 1) -> Any:
    """e^x within 3e-7 of its size, for x cut to [-87, 88]; or, with a ``sign`` of -1, e^-x.

    x = n ln 2 + r with whole n and |r| <= ln(2) / 2; e^r by Taylor's series, 2^n by writing n into the exponent bits.
    The sign is in the constants: an instruction less than -x.
    """
    low, high = sorted((sign * EXP_LOWEST, sign * EXP_HIGHEST))
    x = te.min(te.max(x, number(low)), number(high))
    n = tirx.floor(x * number(sign * math.log2(math.e)) + number(0.5))
    r = x - n * number(sign * LN2_HIGH) - n * number(sign * LN2_LOW)
    series, plus = number(1 / math.factorial(EXP_DEGREE)), operator.add if sign > 0 else operator.sub
    for k in reversed(range(EXP_DEGREE)):
        series = plus(number(1 / math.factorial(k)), series * r)
    return series * tirx.reinterpret(FLOAT32, (tirx.Cast("int32", n) + 127) << 23)


def relu(x: Any) -> Any:
    """max(x, 0)."""
    return te.max(x, number(0.0))


def relu6(x: Any) -> Any:
    """X cut to [0, 6]."""
    return te.min(te.max(x, number(0.0)), number(6.0))


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    return number(1.0) / (number(1.0) + exp(x, -1))


def silu(x: Any) -> Any:
    """X sigmoid(x)."""
    return x / (number(1.0) + exp(x, -1))


def hardsigmoid(x: Any) -> Any:
    """relu6(x + 3) / 6."""
    return relu6(x + number(3.0)) * number(1 / 6)


def hardswish(x: Any) -> Any:
    """X hardsigmoid(x)."""
    return x * hardsigmoid(x)


_FUNCTIONS = (relu, relu6, sigmoid, silu, hardsigmoid, hardswish)
ACTIVATIONS: dict[str, Callable[[Any], Any]] = dict(zip(elementwise.ACTIVATIONS, _FUNCTIONS, strict=True))
"""Expressions by the names that keys have for them."""
