"""Element-wise operators as expressions, simplified to the shortest known form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from aap_hw.compile.families.expression import Expression, Term
from aap_hw.graph.program.call import Call, is_tensor

# Operators whose function has the same name, and whose arguments are all tensors.
PLAIN = (
    *("relu", "relu6", "sigmoid", "silu", "hardsigmoid", "hardswish", "tanh", "erf", "mish", "log_sigmoid", "exp"),
    *("expm1", "log", "log1p", "sin", "cos", "sqrt", "rsqrt", "reciprocal", "neg", "abs", "square", "sign", "floor"),
    *("trunc", "floor_divide", "remainder", "fmod", "isnan"),
    *("ceil", "logical_not", "minimum", "maximum", "lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or"),
)
CONVERSIONS = ("to", "_to_copy", "type_as")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
BITWISE = ("__and__", "__or__", "__xor__", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not")
# Operators that may read only truth values, which are 0 or 1 in float32.
OF_TRUTH = (*BITWISE, "logical_xor", "where", "masked_fill")
LOGICAL = ("logical_and", "logical_or", "logical_not", "isnan", "isinf", "isfinite")
# Types that float32 holds: whole numbers are exact up to 2^24.
WHOLE = {torch.int64, torch.int32}
KNOWN = {torch.float32, torch.bool, *WHOLE}
# What may be made of whole numbers as one.
OF_WHOLE = (
    *("add", "sub", "rsub", "mul", "div", "floor_divide", "remainder", "fmod", "pow", "square", "addcmul", "neg"),
    *("abs", "sign", "relu", "floor", "ceil", "trunc", "round", "minimum", "maximum", "max", "min", "clamp", "clip"),
    *("clamp_min", "clamp_max", "where", "masked_fill", *CONVERSIONS),
)
# Whoever reads a quotient so wants to know whether it is whole.
ROUNDING = ("floor", "ceil", "trunc", "round")
# The numbers that SELU is defined with.
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805

Reader = Callable[[Call, Callable[[str], Expression]], Expression]
_READERS: dict[str, Reader] = {
    "gelu": lambda call, at: Term("gelu_tanh" if call["approximate"] == "tanh" else "gelu", (at("self"),)),
    "hardtanh": lambda call, at: Term("clamp", (at("self"), at("min_val"), at("max_val"))),
    "clamp": lambda call, at: _clamped(call, at),
    "clamp_min": lambda call, at: Term("maximum", (at("self"), at("min"))),
    "clamp_max": lambda call, at: Term("minimum", (at("self"), at("max"))),
    "leaky_relu": lambda call, at: Term("leaky_relu", (at("self"), at("negative_slope"))),
    "elu": lambda call, at: Term("elu", (at("self"), at("alpha"), at("scale"), at("input_scale"))),
    "selu": lambda call, at: Term("elu", (at("self"), SELU_ALPHA, SELU_SCALE, 1.0)),
    "celu": lambda call, at: Term("elu", (at("self"), at("alpha"), 1.0, 1.0 / _number(at("alpha")))),
    "softplus": lambda call, at: Term("softplus", (at("self"), at("beta"), at("threshold"))),
    "add": lambda call, at: Term("add", (at("self"), _times(at("other"), call.get("alpha", 1)))),
    "sub": lambda call, at: Term("sub", (at("self"), _times(at("other"), call.get("alpha", 1)))),
    "rsub": lambda call, at: Term("sub", (_times(at("other"), 1), _times(at("self"), call.get("alpha", 1)))),
    "mul": lambda call, at: Term("mul", (at("self"), at("other"))),
    "div": lambda call, at: Term(_division(call), (at("self"), at("other"))),
    "max": lambda call, at: Term("maximum", (at("self"), _tensor(call, "other"))),
    "min": lambda call, at: Term("minimum", (at("self"), _tensor(call, "other"))),
    "addcmul": lambda call, at: Term("add", (at("self"), _product(call, at, "mul"))),
    "addcdiv": lambda call, at: Term("add", (at("self"), _product(call, at, "div"))),
    "prelu": lambda call, at: Term("leaky_relu", (at("self"), at("weight"))),
    "pow": lambda call, at: _power(call, at("self"), at("exponent")),
    "clip": lambda call, at: _clamped(call, at),
    "where": lambda call, at: Term("where", (at("condition"), at("self"), at("other"))),
    **dict.fromkeys(("__and__", "bitwise_and"), lambda call, at: Term("logical_and", (at("self"), at("other")))),
    **dict.fromkeys(("__or__", "bitwise_or"), lambda call, at: Term("logical_or", (at("self"), at("other")))),
    **dict.fromkeys(("__xor__", "bitwise_xor", "logical_xor"), lambda call, at: _different_truth(call, at)),
    "bitwise_not": lambda call, at: Term("logical_not", (at("self"),)),
    **dict.fromkeys(CONVERSIONS, lambda call, at: _converted(call, at("self"))),
    "exp2": lambda call, at: Term("pow", (2.0, at("self"))),
    "log2": lambda call, at: Term("mul", (Term("log", (at("self"),)), 1 / math.log(2))),
    "log10": lambda call, at: Term("mul", (Term("log", (at("self"),)), 1 / math.log(10))),
    "tan": lambda call, at: Term("div", (Term("sin", (at("self"),)), Term("cos", (at("self"),)))),
    "cosh": lambda call, at: Term("mul", (_both_ways("exp", "add", at("self")), 0.5)),
    "sinh": lambda call, at: Term("mul", (_both_ways("expm1", "sub", at("self")), 0.5)),
    "atanh": lambda call, at: Term("mul", (_both_ways("log1p", "sub", at("self")), 0.5)),
    "round": lambda call, at: _rounded(call, at("self")),
    "frac": lambda call, at: Term("sub", (at("self"), Term("trunc", (at("self"),)))),
    "deg2rad": lambda call, at: Term("mul", (at("self"), math.pi / 180)),
    "rad2deg": lambda call, at: Term("mul", (at("self"), 180 / math.pi)),
    "lerp": lambda call, at: Term(
        "add", (at("self"), Term("mul", (Term("sub", (at("end"), at("self"))), at("weight"))))
    ),
    "threshold": lambda call, at: Term("where", (_up_to(at("self"), at("threshold")), at("value"), at("self"))),
    "hardshrink": lambda call, at: Term("where", (_up_to(_size(at("self")), at("lambd")), 0.0, at("self"))),
    "softshrink": lambda call, at: Term("sub", (at("self"), _within(at("self"), at("lambd")))),
    "isinf": lambda call, at: Term("eq", (_size(at("self")), math.inf)),
    "isfinite": lambda call, at: Term("lt", (_size(at("self")), math.inf)),
    "nan_to_num": lambda call, at: _without_nan(call, at("self")),
    "logit": lambda call, at: _logit(call, at("self")),
    "masked_fill": lambda call, at: Term("where", (at("mask"), at("value"), at("self"))),
}
NAMES = (*PLAIN, *_READERS)
"""Operators that can become expressions."""


class NoExpression(Exception):  # noqa: N818 - an answer
    """No expression stands for what an operator computes."""


def expression_of(node: Node) -> Expression:
    """The expression that an operator computes; nodes that it reads are variables by name.

    Raises
    ------
    NoExpression : it is not element-wise, or its arguments or types are not supported.
    """
    call = Call(node)
    value = node.meta.get("val")
    if call.name not in NAMES or not isinstance(value, torch.Tensor):
        raise NoExpression
    types = {getattr(source.meta["val"], "dtype", None) for source in node.all_input_nodes}
    is_truth = call.name in (*COMPARISONS, *LOGICAL, *CONVERSIONS) or (call.name in OF_TRUTH and types == {torch.bool})
    if not types | {value.dtype} <= KNOWN or (value.dtype == torch.bool and not is_truth):
        raise NoExpression
    if value.dtype in WHOLE and call.name not in OF_WHOLE:
        raise NoExpression

    def at(argument: str) -> Expression:
        return _operand(call[argument])

    if call.name in _READERS:
        return simplified(_READERS[call.name](call, at))
    names = ("self", "other")[: 2 if call.get("other") is not None else 1]
    return simplified(Term(call.name, tuple(map(at, names))))


def _operand(value: Any) -> Expression:
    match value:
        case Node():
            return value.name
        case bool() | int() | float() if value == value:
            return float(value)
    raise NoExpression


def _tensor(call: Call, argument: str) -> Expression:
    """An operand that must be a tensor: the maximum over an axis has a number there, or nothing."""
    if isinstance(call.get(argument), Node):
        return _operand(call[argument])
    raise NoExpression


def _dtype(node: Node) -> torch.dtype:
    found: torch.dtype = node.meta["val"].dtype
    return found


def _division(call: Call) -> str:
    """The function of a division: rounded, or one whose result is whole where the exact one is."""
    mode = call.get("rounding_mode")
    if mode is not None:
        return {"floor": "floor_divide", "trunc": "trunc_divide"}[mode]
    read = [each for each in (call["self"], call["other"]) if isinstance(each, Node)]
    is_of_whole = all(_dtype(each) in WHOLE for each in read)
    is_rounded = any(
        Call(user).name in ROUNDING or _dtype(user) in WHOLE for user in call.node.users if is_tensor(user)
    )
    return "quotient" if is_of_whole or is_rounded else "div"


def _rounded(call: Call, value: Expression) -> Expression:
    """The nearest whole number, or the nearest number of so many decimal places."""
    decimals = call.get("decimals", 0)
    if decimals < 0 or (decimals and _dtype(call.node) in WHOLE):
        raise NoExpression
    factor = 10.0**decimals
    return (
        Term("div", (Term("round", (Term("mul", (value, factor)),)), factor)) if decimals else Term("round", (value,))
    )


def _converted(call: Call, value: Expression) -> Expression:
    """A value as one of another type."""
    before, after = _dtype(call.first), _dtype(call.node)
    if after == torch.bool != before:
        return Term("ne", (value, 0.0))
    return Term("trunc", (value,)) if after in WHOLE and before == torch.float32 else value


def _number(expression: Expression) -> float:
    if isinstance(expression, float):
        return expression
    raise NoExpression


def _times(expression: Expression, alpha: Any) -> Expression:
    return expression if alpha == 1 else Term("mul", (expression, _number(_operand(alpha))))


def _product(call: Call, at: Callable[[str], Expression], function: str) -> Expression:
    return _times(Term(function, (at("tensor1"), at("tensor2"))), call["value"])


def _both_ways(function: str, combined: str, value: Expression) -> Expression:
    """A function of a value and of its negative, combined."""
    return Term(combined, (Term(function, (value,)), Term(function, (Term("neg", (value,)),))))


def _up_to(value: Expression, limit: Expression) -> Expression:
    """Whether a value is no larger than a limit: of NaN it is not, which stays."""
    return Term("le", (value, limit))


def _size(value: Expression) -> Expression:
    return Term("abs", (value,))


def _within(value: Expression, limit: Expression) -> Expression:
    return Term("clamp", (value, -_number(limit), limit))


def _clamped(call: Call, at: Callable[[str], Expression]) -> Expression:
    if call["max"] is None:
        return Term("maximum", (at("self"), at("min")))
    if call["min"] is None:
        return Term("minimum", (at("self"), at("max")))
    return Term("clamp", (at("self"), at("min"), at("max")))


def _different_truth(call: Call, at: Callable[[str], Expression]) -> Expression:
    """Whether one of two truth values is true and the other is not."""
    if any(_dtype(source) != torch.bool for source in call.node.all_input_nodes):
        raise NoExpression
    return Term("ne", (at("self"), at("other")))


def _without_nan(call: Call, value: Expression) -> Expression:
    """A value with numbers in place of NaN and infinity."""
    limit = torch.finfo(torch.float32).max
    made = Term("clamp", (value, -limit, limit))
    for infinity, name in ((-math.inf, "neginf"), (math.inf, "posinf")):
        if call[name] is not None:
            made = Term("where", (Term("eq", (value, infinity)), float(call[name]), made))
    return Term("where", (Term("isnan", (value,)), float(call["nan"] or 0), made))


def _logit(call: Call, value: Expression) -> Expression:
    """The logarithm of the odds, of probabilities that may be kept away from 0 and 1."""
    if call["eps"] is not None:
        value = Term("clamp", (value, float(call["eps"]), 1.0 - call["eps"]))
    return Term("log", (Term("div", (value, Term("sub", (1.0, value)))),))


def _power(call: Call, base: Expression, exponent: Expression) -> Expression:
    is_plain = isinstance(exponent, float) or (isinstance(base, float) and base > 0)
    power = Term("pow" if is_plain else "power", (base, exponent))  # of a negative base, a whole exponent is told apart
    return Term("round", (power,)) if _dtype(call.node) in WHOLE else power


def simplified(expression: Expression) -> Expression:
    """An equal expression: numbers come second, operations without effect are gone, and known functions have names."""
    if not isinstance(expression, Term):
        return expression
    operands = tuple(map(simplified, expression.operands))
    match expression.function, *operands:
        case ("add" | "mul") as function, float() as number, other if not isinstance(other, float):
            return simplified(Term(function, (other, number)))
        case "add", value, 0.0:
            return value
        case "mul", value, 1.0:
            return value
        case "sub", value, float() as number:
            return simplified(Term("add", (value, -number)))
        case "div", value, float() as number if number != 0:
            return simplified(Term("mul", (value, 1 / number)))
        case "pow", value, float() as number if number in _POWERS:
            return Term(_POWERS[number], (value,))
        case "clamp", value, 0.0, 6.0:
            return simplified(Term("relu6", (value,)))
        case "maximum", value, 0.0:
            return simplified(Term("relu", (value,)))
        case "ne", one, other if one == other:  # which TVM takes for false
            return Term("isnan", (one,))
        case "eq", one, other if one == other:
            return Term("logical_not", (Term("isnan", (one,)),))
        case "relu", Term("relu" | "relu6") as value:
            return value
        case "relu6", Term("relu6") as value:
            return value
        case "mul", one, Term("sigmoid" | "hardsigmoid" as gate, (gated,)) if one == gated:
            return Term(_GATED[gate], (one,))
        case "mul", Term("sigmoid" | "hardsigmoid" as gate, (gated,)), one if one == gated:
            return Term(_GATED[gate], (one,))
        case "mul", Term("relu6", (Term("add", (value, 3.0)),)), float() as number if _is_sixth(number):
            return Term("hardsigmoid", (value,))
        case "mul", Term("mul", (one, Term("relu6", (Term("add", (value, 3.0)),)))), float() as number if (
            one == value and _is_sixth(number)
        ):
            return Term("hardswish", (value,))
        case "mul", one, Term("tanh", (Term("softplus", (value, 1.0, float() as threshold)),)) if (
            one == value and threshold >= _SOFTPLUS_IS_LINEAR
        ):
            return Term("mish", (value,))
    return Term(expression.function, operands)


_POWERS = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
_GATED = {"sigmoid": "silu", "hardsigmoid": "hardswish"}
# From here on log(1 + e^x) is x in float32.
_SOFTPLUS_IS_LINEAR = 17.0


def _is_sixth(number: float) -> bool:
    return math.isclose(number, 1 / 6, rel_tol=1e-6)
