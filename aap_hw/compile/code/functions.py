"""What the functions of element-wise expressions compute, and expressions as code."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import te, tirx

from aap_hw.compile.code import approximations, expressions
from aap_hw.compile.code.approximations import let
from aap_hw.compile.code.expressions import number
from aap_hw.compile.families.expression import FUNCTIONS, Expression, Term, parse, size_of, terms
from aap_hw.compile.keys.precision import FLOAT32


def _truth(condition: Any) -> Any:
    return tirx.Select(condition, number(1.0), number(0.0))


def _is_true(x: Any) -> Any:
    return x != number(0.0)


def _exact(x: Any) -> Any:
    """A number as it is, but 0 as bits: TVM takes a product with it for 0, of NaN too, and refuses to divide by it."""
    if not isinstance(x, tirx.FloatImm) or x.value:
        return x
    below = tirx.reinterpret(FLOAT32, tirx.const(-(2**31), "int32"))  # -0, as TVM has no code for the bits of 0
    return below if math.copysign(1, x.value) < 0 else below * number(-1.0)


def _in_double(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function of two numbers in float64, which tells quotients that are nearly whole from whole ones."""

    def apply(x: Any, y: Any) -> Any:
        wide = [tirx.Cast("float64", _exact(each)) for each in (x, y)]
        return tirx.Cast(FLOAT32, let(wide[0], lambda x: let(wide[1], lambda y: function(x, y))))

    return apply


_ONE, _ZERO = number(1.0), number(0.0)
CODE: dict[str, Callable[..., Any]] = {
    **expressions.ACTIVATIONS,
    "tanh": approximations.tanh,
    "erf": approximations.erf,
    "gelu": approximations.gelu,
    "gelu_tanh": approximations.gelu_tanh,
    "mish": approximations.mish,
    "log_sigmoid": approximations.log_sigmoid,
    "exp": approximations.full_exp,
    "expm1": approximations.expm1,
    "log": approximations.log,
    "log1p": approximations.log1p,
    "sin": approximations.sin,
    "cos": approximations.cos,
    "sqrt": tirx.sqrt,
    "rsqrt": lambda x: _ONE / tirx.sqrt(x),
    "reciprocal": lambda x: _ONE / x,
    "neg": lambda x: _ZERO - x,
    "abs": tirx.abs,
    "square": lambda x: x * x,
    "sign": lambda x: _truth(x > _ZERO) - _truth(x < _ZERO),
    "floor": tirx.floor,
    "ceil": tirx.ceil,
    "trunc": tirx.trunc,
    "round": tirx.nearbyint,
    "logical_not": lambda x: _truth(x == _ZERO),
    "isnan": lambda x: _truth(tirx.isnan(x)),
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * _exact(y),
    "div": lambda x, y: x / _exact(y),
    # Of a number, too, where a product with its reciprocal would be another: 41 / 41 is 1.
    "quotient": lambda x, y: x / _exact(y),
    "floor_divide": _in_double(lambda x, y: tirx.floor(x / y)),
    "trunc_divide": _in_double(lambda x, y: tirx.trunc(x / y)),
    "remainder": _in_double(lambda x, y: x - tirx.floor(x / y) * y),
    "fmod": _in_double(lambda x, y: x - tirx.trunc(x / y) * y),
    "pow": approximations.power,
    "power": approximations.power_of_any,
    "minimum": te.min,
    "maximum": te.max,
    "leaky_relu": lambda x, slope: tirx.Select(x > _ZERO, x, x * slope),
    "lt": lambda x, y: _truth(x < y),
    "le": lambda x, y: _truth(x <= y),
    "gt": lambda x, y: _truth(x > y),
    "ge": lambda x, y: _truth(x >= y),
    "eq": lambda x, y: _truth(x == y),
    "ne": lambda x, y: _truth(x != y),
    "logical_and": lambda x, y: _truth(tirx.all(_is_true(x), _is_true(y))),
    "logical_or": lambda x, y: _truth(tirx.any(_is_true(x), _is_true(y))),
    "where": lambda condition, x, y: tirx.Select(_is_true(condition), x, y),
    # Of NaN the second operand is what stays, on x86 too, where a bound may be a constant that is read.
    "clamp": lambda x, low, high: te.min(high, te.max(low, x)),
    "softplus": approximations.softplus,
    "elu": approximations.elu,
}
"""Code of each function, value by value."""
assert CODE.keys() == FUNCTIONS.keys()


def value_of(expression: Expression, values: Mapping[str, Any]) -> Any:
    """An expression as code, given values for its names. Repeated terms are computed once."""
    counts = Counter(terms(expression))
    several = sorted((term for term, count in counts.items() if count > 1), key=size_of)

    def bound(several: Sequence[Term], known: Mapping[Any, Any]) -> Any:
        if not several:
            return _value(expression, known)
        first, *others = several
        return let(_value(first, known), lambda name: bound(others, {**known, first: name}))

    return bound(several, values)


def _value(expression: Expression, known: Mapping[Any, Any]) -> Any:
    if expression in known:
        return known[expression]
    if isinstance(expression, float):
        return number(expression)
    assert isinstance(expression, Term)
    return _applied(expression, [_value(operand, known) for operand in expression.operands], [])


def _applied(term: Term, operands: list[Any], named: list[Any]) -> Any:
    """A function of operands; operands that are expressions themselves are given names."""
    if len(named) == len(operands):
        return CODE[term.function](*named)
    operand = operands[len(named)]
    if not isinstance(term.operands[len(named)], Term):
        return _applied(term, operands, [*named, operand])
    return let(operand, lambda name: _applied(term, operands, [*named, name]))


def after_step(step: str, value: Any) -> Any:
    """Apply a step of an epilogue, which is the name of a function or an expression in ``x``, to a value.

    Raises
    ------
    UserError : no function of this version has the name.
    """
    expression = parse(step if "(" in step else f"{step}(x)")
    return let(value, lambda x: value_of(expression, {"x": x}))
