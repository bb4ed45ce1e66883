"""What of ``self`` a piece of a module's code reads, itself or by way of local variables and of arguments.

Export records which lines made a node; the source tells the rest. It is read, not run: what a branch skips counts, too,
so that answers are conjectures.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from torch import nn
from torch.fx import Node

from aap_hw.graph.program.source import own_frames
from aap_hw.graph.program.syntax import functions_of, read_of_self, statement_at

# How often a local variable is looked up in another one's assignment.
_DEPTH = 4


@dataclass(frozen=True)
class Frame:
    """A statement that is being run, and the function that it is in."""

    path: str
    function: ast.FunctionDef
    statement: ast.stmt


def frames_of(node: Node) -> Iterable[Frame]:
    """The statements that were being run when a node was made, from the innermost."""
    for path, line in own_frames(node):
        functions = [f for f in functions_of(path) if f.lineno <= line <= (f.end_lineno or f.lineno)]
        if functions:
            function = max(functions, key=lambda f: f.lineno)
            yield Frame(path, function, statement_at(function, line))


def called_in(frames: tuple[Frame, ...], module: nn.Module) -> Iterable[tuple[Frame, ...]]:
    """The functions that the innermost statement calls: export does not tell that it was in one.

    They are looked for in the same file, and in those of the classes that a module's own inherits from. The module's
    own methods come first: other classes may call theirs the same.
    """
    called = [_called(call) for call in ast.walk(frames[0].statement) if isinstance(call, ast.Call)]
    methods = [vars(kind)[name] for kind in type(module).__mro__ for name in called if name in vars(kind)]
    own = [(each.__code__.co_filename, each.__code__.co_firstlineno) for each in methods if inspect.isfunction(each)]
    found = [
        Frame(path, function, function)
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


def given(code: ast.expr, at: Frame) -> ast.expr:
    """What a local variable was given last, or the code itself if it is no such name."""
    found = [
        each
        for each in ast.walk(at.function)
        if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name) and isinstance(code, ast.Name)
        if each.targets[0].id == code.id and each.lineno < code.lineno
    ]
    return max(found, key=lambda each: each.lineno).value if found else code


def reads(code: ast.expr, frames: tuple[Frame, ...]) -> tuple[str, ...]:
    """Attributes of ``self`` that a piece of code in the first of some frames reads, itself or by names.

    The other frames are the calls that lead there, from the innermost.
    """
    return _reads(code, frames, _DEPTH)


@cache
def _reads(code: ast.expr, frames: tuple[Frame, ...], depth: int) -> tuple[str, ...]:
    """The same, looked up at most so deep; asked again for every block and trial."""
    return tuple(dict.fromkeys(_read(code, frames, depth)))


def _read(code: ast.expr, frames: tuple[Frame, ...], depth: int) -> Iterable[str]:
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


def _passed(frames: Sequence[Frame]) -> Iterable[tuple[str, ast.expr]]:
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
