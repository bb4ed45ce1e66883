"""Whole-number expressions of a kernel's loops: their range while some loops turn, and a typical value.

Read once from TVM's expressions into tuples, as they are asked for many times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Index = tuple[Any, ...]
"""``("number", n)``, ``("variable", its name here)``, or an operator and its operands."""
Ranges = Mapping[int, tuple[float, float]]
"""The lowest and the highest value of each variable."""

ZERO: Index = ("number", 0)
_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "FloorDiv": lambda a, b: a // b,
    "Min": min,
    "Max": max,
}
_CONDITIONS = ("EQ", "NE", "LT", "LE", "GT", "GE", "And", "Or", "Not")


def index_of(expression: Any, known: Mapping[Any, Index]) -> Index:
    """An expression of ``known`` variables; what has no range of its own, such as a loaded number, counts as 0."""
    name = type(expression).__name__
    if name == "IntImm":
        return "number", int(expression.value)
    if name == "Var":
        return known.get(expression, ZERO)
    if name == "Ramp":
        return index_of(expression.base, known)
    if name == "Cast":
        return index_of(expression.value, known)
    if name == "Not":
        return name, index_of(expression.a, known)
    if name in _OPERATORS or name in _CONDITIONS or name == "FloorMod":
        return name, index_of(expression.a, known), index_of(expression.b, known)
    return ZERO


def variables_of(index: Index) -> frozenset[int]:
    """Names of the variables in it."""
    if index[0] == "variable":
        return frozenset((index[1],))
    return frozenset[int]().union(*(variables_of(part) for part in index[1:] if isinstance(part, tuple)))


def range_of(index: Index, ranges: Ranges) -> tuple[float, float]:
    """The lowest and the highest value, as far as bounds of the parts tell."""
    operator = index[0]
    if operator == "number":
        return index[1], index[1]
    if operator == "variable":
        return ranges[index[1]]
    if operator in _CONDITIONS:
        return 0, 1
    (a, b), (c, d) = range_of(index[1], ranges), range_of(index[2], ranges)
    if operator == "FloorMod":
        whole = b - a < c == d and a // c == b // c
        return (a % c, b % c) if whole else (0, d - 1)
    if operator == "Add":
        return a + c, b + d
    if operator == "Sub":
        return a - d, b - c
    ends = [_OPERATORS[operator](x, y) for x in (a, b) for y in (c, d) if operator != "FloorDiv" or y]
    return min(ends, default=0), max(ends, default=0)


def typical(index: Index, ranges: Ranges) -> float:
    """The value in the middle of every loop."""
    operator = index[0]
    if operator == "number":
        return float(index[1])
    if operator == "variable":
        low, high = ranges[index[1]]
        return (low + high) // 2
    if operator in _CONDITIONS:
        return round(share_of(index, ranges))
    a, b = typical(index[1], ranges), typical(index[2], ranges)
    if operator == "FloorMod":
        return a % b if b else 0.0
    return _OPERATORS[operator](a, b) if operator != "FloorDiv" or b else 0.0


def share_of(condition: Index, ranges: Ranges) -> float:
    """In what share of all turns a condition holds, as if every value between the bounds were as likely."""
    operator = condition[0]
    if operator == "number":
        return float(bool(condition[1]))
    if operator == "And":
        return share_of(condition[1], ranges) * share_of(condition[2], ranges)
    if operator == "Or":
        return 1 - (1 - share_of(condition[1], ranges)) * (1 - share_of(condition[2], ranges))
    if operator in ("NE", "Not", "GT", "GE"):
        opposite = {"NE": "EQ", "GT": "LE", "GE": "LT"}
        return 1 - share_of((opposite[operator], *condition[1:]) if operator != "Not" else condition[1], ranges)
    if operator not in ("EQ", "LT", "LE"):
        return 1.0
    low, high = range_of(("Sub", *condition[1:]), ranges)
    values = high - low + 1
    if operator == "EQ":
        return 1 / values if low <= 0 <= high else 0.0
    return min(1.0, max(0.0, ((0 if operator == "LE" else -1) - low + 1) / values))
