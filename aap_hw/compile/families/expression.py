"""Expressions of element-wise operators: the canonical text that keys have for them, such as ``add(x0,mul(c0,x1))``.

A text holds functions, names of values and numbers. It has no spaces or plus signs, because these separate the parts of
a key. What each function computes is in `code.functions`.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from aap_hw.errors import UserError

# How many operands each function has. Truth is the number 1, and any number but 0 is true.
FUNCTIONS = {
    **dict.fromkeys(("relu", "relu6", "sigmoid", "silu", "hardsigmoid", "hardswish"), 1),
    **dict.fromkeys(("tanh", "erf", "gelu", "gelu_tanh", "mish", "log_sigmoid"), 1),
    **dict.fromkeys(("exp", "expm1", "log", "log1p", "sin", "cos", "sqrt", "rsqrt", "reciprocal"), 1),
    **dict.fromkeys(("neg", "abs", "square", "sign", "floor", "ceil", "trunc", "round", "logical_not", "isnan"), 1),
    **dict.fromkeys(("add", "sub", "mul", "div", "pow", "minimum", "maximum", "leaky_relu"), 2),
    **dict.fromkeys(("quotient", "floor_divide", "trunc_divide", "remainder", "fmod", "power"), 2),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or"), 2),
    **dict.fromkeys(("where", "clamp", "softplus"), 3),
    "elu": 4,
}
# These are a single operation, so their code needs no names for intermediate values.
_SHALLOW = frozenset(
    ("add", "sub", "mul", "div", "minimum", "maximum", "neg", "abs", "relu", "relu6", "clamp", "where")
)
_SHALLOW |= {"lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or", "logical_not", "sqrt", "rsqrt", "square"}
_SHALLOW |= {"trunc", "round", "quotient", "isnan"}
_NAME = re.compile(r"[a-z]\d*")


@dataclass(frozen=True)
class Term:
    """A function of expressions."""

    function: str
    operands: tuple[Expression, ...]

    def __str__(self) -> str:
        return f"{self.function}({','.join(map(text_of, self.operands))})"


Expression = Term | str | float
"""A function of others, the name of a value, or a number."""


def text_of(expression: Expression) -> str:
    """The canonical text. Numbers are written exactly to float32."""
    if isinstance(expression, float):
        text = f"{expression:.9g}".replace("e+", "e").replace("inf", "1e999")
        assert not math.isnan(expression)
        return text
    return str(expression)


@lru_cache(maxsize=4096)
def parse(text: str) -> Expression:
    """Read an expression from its text.

    Raises
    ------
    UserError : it is nothing that `text_of` writes.
    """
    try:
        return _read(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError) as problem:
        raise UserError(
            f"{text!r} is no expression of this version; update aap-hw or profile the device again"
        ) from problem


def _read(node: ast.expr) -> Expression:
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            size = _read(operand)
            if isinstance(size, float):
                return -size
        case ast.Name(id=name) if _NAME.fullmatch(name):
            return name
        case ast.Call(func=ast.Name(id=name), args=operands, keywords=[]) if len(operands) == FUNCTIONS.get(name):
            return Term(name, tuple(map(_read, operands)))
    raise ValueError(ast.dump(node))


def variables(expression: Expression) -> Iterator[str]:
    """The names of values in an expression, in order, as often as they occur."""
    if isinstance(expression, Term):
        for operand in expression.operands:
            yield from variables(operand)
    elif isinstance(expression, str):
        yield expression


def terms(expression: Expression) -> Iterator[Term]:
    """All function terms in an expression, repeated ones too, from the innermost to the whole expression."""
    if isinstance(expression, Term):
        for operand in expression.operands:
            yield from terms(operand)
        yield expression


def size_of(expression: Expression) -> int:
    """How many functions are evaluated."""
    return 1 + sum(map(size_of, expression.operands)) if isinstance(expression, Term) else 0


def depth_of(expression: Expression) -> int:
    """Roughly how often TVM's time for an expression doubles: TVM visits each named value twice."""
    if not isinstance(expression, Term):
        return 0
    own = 1 if expression.function in _SHALLOW else 3
    return own + max(map(depth_of, expression.operands))


def renamed(expression: Expression, names: dict[str, Expression]) -> Expression:
    """The expression with other expressions in place of some names."""
    if isinstance(expression, Term):
        return Term(expression.function, tuple(renamed(operand, names) for operand in expression.operands))
    return names.get(expression, expression) if isinstance(expression, str) else expression
