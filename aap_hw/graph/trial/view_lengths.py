"""Which attribute of a module the length of an axis comes from that its code passes to a view or for a new tensor.

``x.reshape(n, -1, self.num_heads, self.head_dim)`` shows up in an exported program as four numbers. Export recorded the
line, and the source tells what of ``self`` the argument reads, also by way of local variables. As with other numbers
(`literals`), that is a conjecture, which `trial` tries out. A length that the code asks a tensor for reads nothing
of ``self`` and follows without help.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn
from torch.fx import Node

from aap_hw.graph.groups.widths import WidthExpr
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.reading import Frame, called_in, frames_of, given, reads
from aap_hw.graph.program.source import path_of
from aap_hw.graph.program.syntax import read_of_self
from aap_hw.graph.trial.configs import value_of
from aap_hw.graph.walk.labels import IntArray
from aap_hw.graph.walk.rules.filled import FILLED, NUMBERED

_VIEWS = FILLED | {"view", "reshape", "unflatten", "expand", "broadcast_to"}
_OPERATORS = _VIEWS | {"_unsafe_view"}
_Lengths: TypeAlias = "list[ast.expr | None]"
# An attribute that says how many heads there are is not one that says how wide they are, though the numbers be equal.
_IS_COUNT = re.compile(r"(num|nb|^n|_n)_?.*head|^heads?$|_heads$")


@dataclass(frozen=True)
class Follower:
    """An attribute that has to change with a length.

    Parameters
    ----------
    name
        Of the attribute.
    counts
        The number, or each of the numbers, as a function of group widths.
    sequence
        The type of a sequence that is a whole shape, None for a single number.
    """

    name: str
    counts: tuple[WidthExpr, ...]
    sequence: type[list[int]] | type[tuple[int, ...]] | None = None


def follower(node: Node, dim: int, ids: IntArray, count: WidthExpr, module: nn.Module) -> Follower | None:
    """The attribute of a module that the length of axis ``dim`` of a view comes from, if one does.

    Parameters
    ----------
    ids
        Atoms along the axis.
    count
        How many there are.
    """
    number, neighbours_are_one = ids.size, ids.size > 1 and bool(ids[0] == ids[1])
    found: list[tuple[int, Follower]] = []
    for name in dict.fromkeys(_names(node, dim, module)):
        value = value_of(module, name)
        if type(value) is not int or value < 1:
            continue
        as_count, counts_heads = _as(value, number, count), bool(_IS_COUNT.search(name.rpartition(".")[2]))
        if as_count is not None and (value == number or counts_heads <= neighbours_are_one):
            found.append(((value != number) * 2 + (counts_heads != neighbours_are_one), Follower(name, (as_count,))))
    if found:
        return min(found, key=lambda each: each[0])[1]
    return _in_sequence(node, dim, number, count, module)


def _in_sequence(node: Node, dim: int, number: int, count: WidthExpr, module: nn.Module) -> Follower | None:
    """The attribute that holds several lengths of a view, ``x.view(n, *self.shape)``, or one: ``self.sizes[-1]``."""
    frames, shape = tuple(frames_of(node)), shape_of(node)
    for at in [frames, *called_in(frames, module)] if frames else []:
        arguments = [argument for view in _views(at[0].statement) for argument in view]
        places = [each for argument in arguments for each in _subscripts(argument)]
        places += [(name, None) for argument in arguments for name in reads(argument, at)]
        for name, place in dict.fromkeys(places):
            value = value_of(module, name)
            if not isinstance(value, (tuple, list)) or any(type(each) is not int for each in value):
                continue
            if place is None:
                place = _place_in(value, shape, dim)
            if place is not None and -len(value) <= place < len(value) and value[place] == number:
                counts = [WidthExpr(each) for each in value]
                counts[place] = count
                return Follower(name, tuple(counts), type(value))
    return None


def _place_in(lengths: Sequence[int], shape: tuple[int, ...], dim: int) -> int | None:
    """Where in some lengths that of an axis is, if they are neighbours in a shape: the last ones if there are several.

    A length of 1 or -1 fits any: code may put that of the batch in its place.
    """
    for first in range(len(shape) - len(lengths), -1, -1):
        if first <= dim < first + len(lengths) and all(
            length in (size, 1, -1) for length, size in zip(lengths, shape[first:], strict=False)
        ):
            return dim - first
    return None


def _subscripts(code: ast.expr) -> Iterable[tuple[str, int | None]]:
    """Attributes of ``self`` of which a piece of code takes one element, and which."""
    for each in ast.walk(code):
        if isinstance(each, ast.Subscript) and isinstance(each.value, (ast.Attribute, ast.Subscript)):
            try:
                place = ast.literal_eval(each.slice)
            except ValueError:
                continue
            if type(place) is int:
                yield from ((name, place) for name in read_of_self(each.value))


def _as(value: int, number: int, count: WidthExpr) -> WidthExpr | None:
    """What a value is if it is the number, a multiple of it or a divisor."""
    if value % number == 0:
        times = value // number
        return WidthExpr(count.constant * times, tuple((name, each * times) for name, each in count.terms))
    parts = number // value
    if number % value or count.constant % parts or any(each % parts for _, each in count.terms):
        return None
    return WidthExpr(count.constant // parts, tuple((name, each // parts) for name, each in count.terms))


def _names(node: Node, dim: int, module: nn.Module) -> Iterable[str]:
    """Attributes of ``self`` that the code reads for one argument of a view."""
    frames = tuple(frames_of(node))
    shape, place = shape_of(node), dim
    count = len(shape)
    if Call(node).name == "unflatten":
        place, count = dim - Call(node)["dim"] % len(shape_of(Call(node).first)), len(Call(node)["sizes"])
    for at in [frames, *called_in(frames, module)] if frames else []:
        views = [_by_axis(each, at[0], count) for each in _views(at[0].statement)]
        its_own = _its_own(node, frames[0], views)
        fitting = [each for each in its_own or views if 0 <= place < len(each) and _fits(each, shape[dim - place :])]
        lengths = [each[place] for each in fitting]
        for length in lengths:
            yield from reads(length, at) if length is not None else ()
        if any(lengths):
            return


def _its_own(node: Node, at: Frame, views: Sequence[_Lengths]) -> Sequence[_Lengths]:
    """The one of several views in a statement that a node is, as they run in order; none if that cannot be told."""
    path = path_of(node)
    if len(views) < 2 or Call(node).name not in _OPERATORS:
        return ()
    like = [each for each in node.graph.nodes if path_of(each) == path and Call(each).name in _OPERATORS]
    here = [each for each in like if next(iter(frames_of(each)), None) == at]
    return () if len(here) % len(views) else [views[here.index(node) % len(views)]]


def _views(code: ast.AST) -> Iterable[list[ast.expr]]:
    """The lengths that each view in a piece of code passes, in the order in which they are run."""
    calls = [each for each in ast.walk(code) if isinstance(each, ast.Call)]
    for call in sorted(calls, key=lambda each: (each.end_lineno or 0, each.end_col_offset or 0)):
        if isinstance(call.func, ast.Attribute) and call.func.attr in _VIEWS:
            arguments = [*call.args, *(word.value for word in call.keywords if word.arg in ("shape", "size", "sizes"))]
            arguments = arguments[:1] if call.func.attr in NUMBERED else arguments
            if arguments and isinstance(arguments[-1], (ast.Tuple, ast.List)):
                arguments = list(arguments[-1].elts)
            if arguments:
                yield arguments


def _by_axis(arguments: list[ast.expr], at: Frame, count: int) -> _Lengths:
    """What a view passes for each of its axes, None for those of ``*x.shape[:-1]`` or ``x.size()[:-1] + (...)``.

    The whole shape may be in a local variable: ``x.view(shape)``, ``x.view(*shape)``.
    """
    if len(arguments) == 1:
        (whole,) = arguments
        arguments = _several(given(whole.value if isinstance(whole, ast.Starred) else whole, at)) or arguments
    stars = [place for place, each in enumerate(arguments) if isinstance(each, ast.Starred)]
    if not stars:
        return [*arguments]
    front, back = arguments[: stars[0]], arguments[stars[-1] + 1 :]
    return [*front, *[None] * (count - len(front) - len(back)), *back]


def _several(code: ast.expr) -> list[ast.expr]:
    """The elements of a tuple, of which the first may be those of another one; none if it is anything else."""
    if isinstance(code, (ast.Tuple, ast.List)):
        return code.elts
    if isinstance(code, ast.BinOp) and isinstance(code.op, ast.Add) and (behind := _several(code.right)):
        return [ast.Starred(code.left), *behind]
    return []


def _fits(arguments: Sequence[ast.expr | None], shape: tuple[int, ...]) -> bool:
    """Whether the numbers among the lengths are those of a shape."""
    numbers = [each.value if isinstance(each, ast.Constant) else None for each in arguments]
    return len(arguments) <= len(shape) and all(
        number is None or number == size for number, size in zip(numbers, shape, strict=False)
    )
