"""Functions that no processor has as an instruction, made of arithmetic that LLVM turns into vector instructions.

Each docstring states the largest error in float32, rounding included. "Of its size" means a relative error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from aap_hw.compile.code.expressions import EXP_LOWEST, LN2_HIGH, LN2_LOW, exp, number
from aap_hw.compile.keys.precision import FLOAT32

# From here on the hyperbolic tangent and the error function are 1 in float32.
TANH_IS_ONE, ERF_IS_ONE = 9.0, 3.95
# Coefficients of x P(x^2) / Q(x^2) up to that limit, lowest power first. They are a least-squares fit of the relative
# error, reweighted until its maxima were equal, at 2e-8.
TANH_ABOVE = (0.99999998, 0.13380975, 0.00349552687, 2.06080472e-05, 1.33532046e-08)
TANH_BELOW = (1.0, 0.467142906, 0.0258767517, 0.000328553327, 7.7759654e-07)
ERF_ABOVE = (1.12837914, 0.191536795, 0.0528734153, 0.00380751816, 0.000284662957, 2.02587686e-06)
ERF_BELOW = (1.0, 0.503077744, 0.114553818, 0.015053805, 0.00117055071, 3.78301811e-05)
# pi / 2 in three parts: products of the first two with whole numbers below 2^13 are exact in float32.
HALF_PI = (1.5703125, 4.837512969970703e-4, 7.549789948768648e-8)
SINE = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(5))
COSINE = tuple((-1) ** k / math.factorial(2 * k) for k in range(5))
# log((1 + s) / (1 - s)) = 2 s (1 + s^2 / 3 + s^4 / 5 + ...), for |s| <= 0.172 and |s| <= 1/3.
LOG_SERIES = tuple(2 / (2 * k + 1) for k in range(5))
LONG_LOG_SERIES = tuple(2 / (2 * k + 1) for k in range(9))
SQRT_HALF_BITS, MANTISSA_BITS = 0x3F3504F3, 23
SMALLEST_NORMAL = 2.0**-126
# 2^f for |f| <= 1/2, lowest power first, fitted like those above: within 2e-7 of its size.
POWER_OF_FRACTION = (1.00000008, 0.693147188, 0.240221075, 0.0555035711, 0.00967603192, 0.00133908634)
# Added to a float32 below 2^22 in size, it leaves no room for a fraction. The sum is rounded to the nearest whole
# number, of two to the even one, which stands in its last bits.
WITHOUT_FRACTION = 1.5 * 2.0**23
# From here down the GELU that uses the hyperbolic tangent is 0 in float32.
GELU_IS_ZERO = -6.0


def let(value: Any, body: Callable[[Any], Any]) -> Any:
    """Pass a value that ``body`` uses several times as a name, so that it is computed once."""
    name = tirx.Var("value", value.ty)
    return tirx.Let(name, value, body(name))


def polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    """The sum of coefficients times powers of x, lowest power first."""
    result = number(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + number(coefficient)
    return result


def between(x: Any, low: float, high: float) -> Any:
    """X cut to a range."""
    return te.min(te.max(x, number(low)), number(high))


def _power_of_two(n: Any) -> Any:
    """2^n for a whole number (int32) from -126 to 127."""
    return tirx.reinterpret(FLOAT32, (n + 127) << MANTISSA_BITS)


def _odd_ratio(x: Any, above: Sequence[float], below: Sequence[float], square_to: float, limit: float) -> Any:
    """X P(x^2) / Q(x^2), where x^2 is cut to ``square_to``; beyond, this grows with x until ``limit`` cuts it."""

    def value(x: Any, square: Any) -> Any:
        return between(x * polynomial(square, above) / polynomial(square, below), -limit, limit)

    return let(x, lambda x: let(te.min(x * x, number(square_to)), lambda square: value(x, square)))


def tanh(x: Any) -> Any:
    """The hyperbolic tangent within 5e-7 of its size."""
    return _odd_ratio(x, TANH_ABOVE, TANH_BELOW, TANH_IS_ONE**2, 1.0)


def erf(x: Any) -> Any:
    """The error function within 5e-7 of its size."""
    return _odd_ratio(x, ERF_ABOVE, ERF_BELOW, ERF_IS_ONE**2, 1.0)


def gelu(x: Any) -> Any:
    """X times the normal distribution, x (1 + erf(x / sqrt 2)) / 2, within 1e-6, or 5e-7 of its size above 1.

    The constants are those of the error function with the two factors of 1/2 in them.
    """
    above = [c * 0.5 ** (k + 1.5) for k, c in enumerate(ERF_ABOVE)]
    below = [c * 0.5**k for k, c in enumerate(ERF_BELOW)]
    return let(x, lambda x: x * (_odd_ratio(x, above, below, 2 * ERF_IS_ONE**2, 0.5) + number(0.5)))


def gelu_tanh(x: Any) -> Any:
    """X (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 within 1e-6, or 5e-7 of its size above 1."""
    inner = (math.sqrt(2 / math.pi), 0.044715 * math.sqrt(2 / math.pi))
    return let(
        te.max(x, number(GELU_IS_ZERO)),
        lambda cut: cut * (number(0.5) + number(0.5) * tanh(cut * polynomial(cut * cut, inner))),
    )


def _reduced(x: Any, body: Callable[[Any, Any], Any]) -> Any:
    """Apply ``body`` to n and r, where x = n ln 2 + r with whole n and |r| <= ln(2) / 2."""

    def rest(x: Any, n: Any) -> Any:
        return x - n * number(LN2_HIGH) - n * number(LN2_LOW)

    return let(
        x,
        lambda x: let(
            tirx.floor(x * number(math.log2(math.e)) + number(0.5)), lambda n: let(rest(x, n), lambda r: body(n, r))
        ),
    )


def _exp_series(r: Any) -> Any:
    """e^r for |r| <= ln(2) / 2 by Taylor's series."""
    return polynomial(r, [1 / math.factorial(k) for k in range(7)])


def full_exp(x: Any) -> Any:
    """e^x within 3e-7 of its size while that is a normal number of float32; infinite above, and 0 well below."""

    def scaled(n: Any, rest: Any) -> Any:
        half = tirx.Cast("int32", n) >> 1
        other = tirx.Cast("int32", n) - half
        return _exp_series(rest) * _power_of_two(half) * _power_of_two(other)

    return _reduced(between(x, -104.0, 89.0), scaled)


def _one_and_exp_of_minus(x: Any) -> Any:
    """1 + e^-x within 1e-7 (2 + |x|) of its size, for x cut to [-86, 86], in two thirds of the instructions of exp."""

    def of_power(power: Any, shifted: Any) -> Any:
        series = polynomial(power - (shifted - number(WITHOUT_FRACTION)), POWER_OF_FRACTION)
        bits = tirx.reinterpret("int32", series) + (tirx.reinterpret("int32", shifted) << MANTISSA_BITS)
        return number(1.0) + tirx.reinterpret(FLOAT32, bits)

    power = between(x * number(-math.log2(math.e)), -125.0, 125.0)
    return let(power, lambda power: let(power + number(WITHOUT_FRACTION), lambda shifted: of_power(power, shifted)))


def sigmoid_for_bytes(x: Any) -> Any:
    """1 / (1 + e^-x) within 3e-7."""
    return number(1.0) / _one_and_exp_of_minus(x)


def silu_for_bytes(x: Any) -> Any:
    """X / (1 + e^-x) within 5e-7, or 3e-7 of its size above 1."""
    return let(x, lambda x: x / _one_and_exp_of_minus(x))


def expm1(x: Any) -> Any:
    """e^x - 1 within 5e-7 of its size, for x cut to at most 88."""

    def scaled(n: Any, r: Any) -> Any:
        series = r * polynomial(r, [1 / math.factorial(k + 1) for k in range(7)])
        power = _power_of_two(tirx.Cast("int32", n))
        return let(power, lambda power: series * power + (power - number(1.0)))

    return _reduced(between(x, -87.0, 88.0), scaled)


def log(x: Any) -> Any:
    """The natural logarithm within 3e-7 of its size: -inf at 0, NaN below.

    x = 2^e m with m from sqrt(1/2) to sqrt(2), and log m = log((1 + s) / (1 - s)) with s = (m - 1) / (m + 1).
    """

    def of_normal(x: Any, shift: Any) -> Any:
        bits = tirx.reinterpret("int32", x)
        return let(
            (bits - SQRT_HALF_BITS) >> MANTISSA_BITS,
            lambda e: let(
                tirx.reinterpret(FLOAT32, bits - (e << MANTISSA_BITS)) - number(1.0),
                lambda f: _log_of_parts(tirx.Cast(FLOAT32, e) - shift, f),
            ),
        )

    def value(x: Any) -> Any:
        is_tiny = x < number(SMALLEST_NORMAL)
        scaled = tirx.Select(is_tiny, x * number(2.0**MANTISSA_BITS), x)
        shift = tirx.Select(is_tiny, number(float(MANTISSA_BITS)), number(0.0))
        usual = let(scaled, lambda scaled: of_normal(scaled, shift))
        unusual = tirx.Select(x == number(0.0), number(-math.inf), number(math.nan))
        return tirx.Select(x > number(0.0), tirx.Select(x < number(math.inf), usual, x), unusual)

    return let(x, value)


def _log_of_parts(e: Any, f: Any) -> Any:
    """The logarithm e ln 2 + log(1 + f) of a number in parts."""
    return let(e, lambda e: e * number(LN2_HIGH) + (_log_by_series(f, LOG_SERIES) + e * number(LN2_LOW)))


def _log_by_series(f: Any, series: Sequence[float]) -> Any:
    return let(f / (f + number(2.0)), lambda s: s * polynomial(s * s, series))


def log1p(x: Any) -> Any:
    """log(1 + x) within 5e-7 of its size; around 0, where 1 + x would lose digits of x, by its series."""

    def value(x: Any) -> Any:
        is_near = tirx.all(x > number(-0.5), x < number(1.0))
        return tirx.Select(is_near, _log_by_series(between(x, -0.5, 1.0), LONG_LOG_SERIES), log(number(1.0) + x))

    return let(x, value)


def log1p_of_power(x: Any) -> Any:
    """log(1 + e^-|x|) within 5e-7 of its size."""
    return let(exp(number(0.0) - tirx.abs(x)), lambda power: _log_by_series(power, LONG_LOG_SERIES))


def softplus(x: Any, beta: Any, threshold: Any) -> Any:
    """log(1 + e^(beta x)) / beta within 5e-7 of its size; x where beta x is above the threshold."""

    def value(x: Any) -> Any:
        scaled = x * beta
        usual = (te.max(scaled, number(0.0)) + log1p_of_power(scaled)) / beta
        return tirx.Select(scaled > threshold, x, usual)

    return let(x, value)


def log_sigmoid(x: Any) -> Any:
    """log(1 / (1 + e^-x)) within 5e-7 of its size."""
    return let(x, lambda x: te.min(x, number(0.0)) - log1p_of_power(x))


def mish(x: Any) -> Any:
    """X tanh(log(1 + e^x)) within 1e-6 of its size, or 1e-30: x n / (n + 2) with n = e^x (e^x + 2)."""

    def value(x: Any) -> Any:
        power = exp(te.min(x, number(20.0)))
        product = let(power, lambda power: power * (power + number(2.0)))
        return x * let(product, lambda product: product / (product + number(2.0)))

    return let(te.max(x, number(EXP_LOWEST)), value)


def elu(x: Any, alpha: Any, scale: Any, input_scale: Any) -> Any:
    """X above 0, alpha (e^(input_scale x) - 1) below, both times scale, within 5e-7 of its size."""
    return let(x, lambda x: scale * tirx.Select(x > number(0.0), x, alpha * expm1(x * input_scale)))


_POWERS: dict[float, Callable[[Any], Any]] = {
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
    4.0: lambda x: let(x * x, lambda square: square * square),
    0.5: tirx.sqrt,
    -0.5: lambda x: number(1.0) / tirx.sqrt(x),
    -1.0: lambda x: number(1.0) / x,
}


def power(x: Any, exponent: Any) -> Any:
    """x^exponent, within 3e-7 (1 + |exponent log x|) of its size, the usual exponents within 3e-7.

    For negative x it is NaN unless the exponent is a constant whole number.
    """
    known = float(exponent.value) if isinstance(exponent, tirx.FloatImm) else math.nan
    if known in _POWERS:
        return let(x, _POWERS[known])
    if not known.is_integer():
        return let(x, lambda x: tirx.Select(x < number(0.0), number(math.nan), full_exp(exponent * log(x))))
    size = full_exp(exponent * log(tirx.abs(x)))
    return let(x, lambda x: let(size, lambda size: tirx.Select(x < number(0.0), -size, size))) if known % 2 else size


def power_of_any(x: Any, exponent: Any) -> Any:
    """x^exponent of any two numbers, within 3e-7 (1 + |exponent log x|) of its size; of no whole exponent, x >= 0."""

    def value(x: Any, exponent: Any, size: Any) -> Any:
        half = exponent * number(0.5)
        is_whole, is_odd = tirx.floor(exponent) == exponent, tirx.floor(half) != half
        below = tirx.Select(is_whole, tirx.Select(is_odd, -size, size), number(math.nan))
        known = tirx.Select(x < number(0.0), below, size)
        return tirx.Select(exponent == number(0.0), number(1.0), known)

    def of(x: Any, exponent: Any) -> Any:
        return let(full_exp(exponent * log(tirx.abs(x))), lambda size: value(x, exponent, size))

    return let(x, lambda x: let(exponent, lambda exponent: of(x, exponent)))


def sin(x: Any) -> Any:
    """The sine within 3e-7, for |x| up to 8000."""
    return _by_quadrant(x, 0)


def cos(x: Any) -> Any:
    """The cosine within 3e-7, for |x| up to 8000."""
    return _by_quadrant(x, 1)


def _by_quadrant(x: Any, ahead: int) -> Any:
    """The sine of x plus ``ahead`` quarter turns, from the distance between x and the nearest quarter turn."""

    def value(x: Any, n: Any) -> Any:
        quadrant = tirx.Cast("int32", n) + ahead
        r = x - n * number(HALF_PI[0]) - n * number(HALF_PI[1]) - n * number(HALF_PI[2])

        def of_rest(r: Any) -> Any:
            square = r * r
            either = tirx.Select((quadrant & 1) == 0, r * polynomial(square, SINE), polynomial(square, COSINE))
            return let(either, lambda either: tirx.Select((quadrant & 2) == 0, either, number(0.0) - either))

        return let(r, of_rest)

    return let(x, lambda x: let(tirx.floor(x * number(2 / math.pi) + number(0.5)), lambda n: value(x, n)))
