"""Which attribute of a module the length of an axis comes from that its code passes to a view or for a new tensor.

``x.reshape(n, -1, self.num_heads, self.head_dim)`` shows up in an exported program as four numbers. Export recorded the
line, and the source tells what of ``self`` the argument reads, also by way of local variables. As with other numbers
(`literals`), that is a conjecture, which `trial` tries out. A length that the code asks a tensor for reads nothing
of ``self`` and follows without help.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from torch import nn
from torch.fx import Node

from aap_hw.graph.groups.widths import WidthExpr
from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.source import own_frames, path_of
from aap_hw.graph.program.syntax import functions_of, read_of_self, statement_at
from aap_hw.graph.trial.configs import value_of
from aap_hw.graph.walk.labels import IntArray
from aap_hw.graph.walk.rules.filled import FILLED, NUMBERED

_VIEWS = FILLED | {"view", "reshape", "unflatten", "expand", "broadcast_to"}
_OPERATORS = _VIEWS | {"_unsafe_view"}
_Lengths: TypeAlias = "list[ast.expr | None]"
# How often a local variable is looked up in another one's assignment.
_DEPTH = 4
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
    frames, shape = tuple(_frames(node)), shape_of(node)
    for at in [frames, *_inside(frames, module)] if frames else []:
        arguments = [argument for view in _views(at[0].statement) for argument in view]
        places = [each for argument in arguments for each in _subscripts(argument)]
        places += [(name, None) for argument in arguments for name in _reads(argument, at, _DEPTH)]
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
        if isinstance(each, ast.Subscript) and isinstance(each.value, ast.Attribute):
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
    frames = tuple(_frames(node))
    shape, place = shape_of(node), dim
    count = len(shape)
    if Call(node).name == "unflatten":
        place, count = dim - Call(node)["dim"] % len(shape_of(Call(node).first)), len(Call(node)["sizes"])
    for at in [frames, *_inside(frames, module)] if frames else []:
        views = [_by_axis(each, at[0], count) for each in _views(at[0].statement)]
        its_own = _its_own(node, frames[0], views)
        fitting = [each for each in its_own or views if 0 <= place < len(each) and _fits(each, shape[dim - place :])]
        lengths = [each[place] for each in fitting]
        for length in lengths:
            yield from _reads(length, at, _DEPTH) if length is not None else ()
        if any(lengths):
            return


def _its_own(node: Node, at: _Frame, views: Sequence[_Lengths]) -> Sequence[_Lengths]:
    """The one of several views in a statement that a node is, as they run in order; none if that cannot be told."""
    path = path_of(node)
    if len(views) < 2 or Call(node).name not in _OPERATORS:
        return ()
    like = [each for each in node.graph.nodes if path_of(each) == path and Call(each).name in _OPERATORS]
    here = [each for each in like if next(iter(_frames(each)), None) == at]
    return () if len(here) % len(views) else [views[here.index(node) % len(views)]]


@dataclass(frozen=True)
class _Frame:
    """A statement that is being run, and the function that it is in."""

    path: str
    function: ast.FunctionDef
    statement: ast.stmt


def _inside(frames: tuple[_Frame, ...], module: nn.Module) -> Iterable[tuple[_Frame, ...]]:
    """The functions that the innermost statement calls: export does not tell that it was in one.

    They are looked for in the same file, and in those of the classes that a module's own inherits from. The module's
    own methods come first: other classes may call theirs the same.
    """
    called = [_called(call) for call in ast.walk(frames[0].statement) if isinstance(call, ast.Call)]
    methods = [vars(kind)[name] for kind in type(module).__mro__ for name in called if name in vars(kind)]
    own = [(each.__code__.co_filename, each.__code__.co_firstlineno) for each in methods if inspect.isfunction(each)]
    found = [
        _Frame(path, function, function)
        for path in dict.fromkeys([frames[0].path, *(path for path, _ in own)])
        for function in functions_of(path)
        if function.name in called and function is not frames[0].function
    ]
    for each in sorted(found, key=lambda each: (each.path, _first_line(each.function)) not in own):
        yield (each, *frames)


def _first_line(function: ast.FunctionDef) -> int:
    """Where a function begins, as Python counts: with its decorators."""
    return min([function.lineno, *(each.lineno for each in function.decorator_list)])


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else str(getattr(call.func, "id", ""))


def _frames(node: Node) -> Iterable[_Frame]:
    for path, line in own_frames(node):
        functions = [f for f in functions_of(path) if f.lineno <= line <= (f.end_lineno or f.lineno)]
        if functions:
            function = max(functions, key=lambda f: f.lineno)
            yield _Frame(path, function, statement_at(function, line))


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


def _by_axis(arguments: list[ast.expr], at: _Frame, count: int) -> _Lengths:
    """What a view passes for each of its axes, None for those of ``*x.shape[:-1]`` or ``x.size()[:-1] + (...)``.

    The whole shape may be in a local variable: ``x.view(shape)``, ``x.view(*shape)``.
    """
    if len(arguments) == 1:
        (whole,) = arguments
        arguments = _several(_given(whole.value if isinstance(whole, ast.Starred) else whole, at)) or arguments
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


def _given(code: ast.expr, at: _Frame) -> ast.expr:
    """What a local variable was given last, or the code itself if it is no such name."""
    given = [
        each
        for each in ast.walk(at.function)
        if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name) and isinstance(code, ast.Name)
        if each.targets[0].id == code.id and each.lineno < code.lineno
    ]
    return max(given, key=lambda each: each.lineno).value if given else code


def _fits(arguments: Sequence[ast.expr | None], shape: tuple[int, ...]) -> bool:
    """Whether the numbers among the lengths are those of a shape."""
    numbers = [each.value if isinstance(each, ast.Constant) else None for each in arguments]
    return len(arguments) <= len(shape) and all(
        number is None or number == size for number, size in zip(numbers, shape, strict=False)
    )


@cache
def _reads(code: ast.expr, frames: tuple[_Frame, ...], depth: int) -> tuple[str, ...]:
    """Attributes of ``self`` that a piece of code reads, itself or by names; asked again for every block and trial."""
    return tuple(dict.fromkeys(_read(code, frames, depth)))


def _read(code: ast.expr, frames: tuple[_Frame, ...], depth: int) -> Iterable[str]:
    counted = _without_divisors(code)
    yield from (name for each in counted for name in read_of_self(each))
    if not depth or not frames:
        return
    names = [each for part in counted for each in ast.walk(part) if isinstance(each, ast.Name)]
    wanted = {each.id for each in names if each.id != "self"}
    for statement in ast.walk(frames[0].function):
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                for name, value in _assigned(target, statement.value):
                    if name in wanted:
                        yield from _reads(value, frames, depth - 1)
    for name, value in _passed(frames):
        if name in wanted:
            yield from _reads(value, frames[1:], depth - 1)


def _without_divisors(code: ast.expr) -> list[ast.expr]:
    """The parts of a calculation but for what it divides by: ``c // self.groups`` is no number of groups."""
    if not isinstance(code, ast.BinOp):
        return [code]
    divides = isinstance(code.op, (ast.Div, ast.FloorDiv))
    return [*_without_divisors(code.left), *([] if divides else _without_divisors(code.right))]


def _passed(frames: Sequence[_Frame]) -> Iterable[tuple[str, ast.expr]]:
    """Parameters of a function with what the statement that called it passes."""
    if len(frames) < 2:
        return
    function = frames[0].function
    names = [each.arg for each in function.args.args if each.arg != "self"]
    for call in ast.walk(frames[1].statement):
        if isinstance(call, ast.Call) and _called(call) == function.name:
            yield from zip(names, call.args, strict=False)
            yield from ((str(word.arg), word.value) for word in call.keywords)


def _assigned(target: ast.expr, value: ast.expr) -> Iterable[tuple[str, ast.expr]]:
    """Names with what they are given; what is taken apart only if it is written out."""
    copies = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in ("list", "tuple")
    is_plain = isinstance(value, (ast.Attribute, ast.BinOp, ast.Name, ast.Constant))
    if isinstance(target, ast.Name) and (is_plain or copies):
        yield target.id, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for each, its in zip(target.elts, value.elts, strict=True):
            yield from _assigned(each, its)
