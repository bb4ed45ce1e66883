"""Attributes that a module's code compares with the number of channels it is given: ``assert c == self.channels``.

An exported program shows nothing of such a check, and a cut network fails in it, so the attribute is set along with the
channels. Which axis is compared is read off the source: ``x.shape[1]``, ``x.size(1)``, or a name given by ``n, c, h, w
= x.shape``. That is a conjecture, which a trial cut tries out. Only checks against an attribute alone are found, in
``forward`` itself but not in that of the whole model, and only if all that goes into the module agrees on what the
attribute counts.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Iterable

from torch import nn
from torch.fx import Node

from aap_hw.foreign import is_own_file
from aap_hw.graph.groups.groups import Grouping
from aap_hw.graph.groups.widths import WidthExpr, width_along
from aap_hw.graph.program.call import is_tensor, shape_of
from aap_hw.graph.program.syntax import functions_of, read_of_self
from aap_hw.graph.trial.literals import Attribute, modules_around
from aap_hw.graph.walk.labelling import Labelling


def checked_counts(labelling: Labelling, model: nn.Module, grouping: Grouping) -> Iterable[Attribute]:
    """Attributes that checks compare with a width that can be cut."""
    found = {path: (module, _checks(getattr(type(module), "forward", None))) for path, module in model.named_modules()}
    checked = {path: each for path, each in found.items() if path and each[1]}
    inputs: dict[str, set[Node]] = {path: set() for path in checked}
    for node in labelling.labels if checked else ():
        around = checked.keys() & modules_around(node)
        for source in node.all_input_nodes if around else ():
            if source.op == "call_function" and source in labelling.labels and is_tensor(source):
                for path in around.difference(modules_around(source)):
                    inputs[path].add(source)
    for path, (module, checks) in checked.items():
        for name, axis in checks:
            counts = set(_widths(labelling, inputs[path], axis, getattr(module, name, None), grouping))
            if len(counts) == 1 and (count := counts.pop()).terms:
                yield Attribute(path, name, (count,), None)


def _widths(
    labelling: Labelling, inputs: Iterable[Node], axis: int, value: object, grouping: Grouping
) -> Iterable[WidthExpr]:
    """The lengths of an axis of those inputs in which it is as long as a value says."""
    for node in inputs:
        shape = shape_of(node)
        if -len(shape) <= axis < len(shape) and type(value) is int and shape[axis] == value:
            yield width_along(labelling.all_labels(node)[0], axis % len(shape), value, grouping)


@functools.lru_cache(maxsize=1024)
def _checks(forward: Callable[..., object] | None) -> tuple[tuple[str, int], ...]:
    """Names of attributes that a method's checks compare with the length of an axis, and the axis."""
    code = getattr(forward and inspect.unwrap(forward), "__code__", None)
    if code is None or not is_own_file(code.co_filename):
        return ()
    behind = [f for f in functions_of(code.co_filename) if f.name == code.co_name and f.lineno >= code.co_firstlineno]
    if not behind:
        return ()
    function = min(behind, key=lambda f: f.lineno)
    found = []
    for condition in _conditions(function):
        for each in ast.walk(condition):
            if isinstance(each, ast.Compare) and len(each.ops) == 1 and isinstance(each.ops[0], (ast.Eq, ast.NotEq)):
                for kept, length in ((each.left, each.comparators[0]), (each.comparators[0], each.left)):
                    if isinstance(kept, ast.Attribute) and isinstance(kept.value, ast.Name) and read_of_self(kept):
                        found.append((kept.attr, _axis(length, function)))
    return tuple((name, axis) for name, axis in found if axis is not None)


def _conditions(function: ast.FunctionDef) -> Iterable[ast.expr]:
    for each in ast.walk(function):
        match each:
            case ast.Assert(test=test) | ast.If(test=test, body=[ast.Raise(), *_]):
                yield test


def _axis(code: ast.expr, function: ast.FunctionDef) -> int | None:
    """Of which axis an expression is the length: an index, from the end if it is negative; None if of none."""
    match code:
        case ast.Subscript(value=ast.Attribute(attr="shape"), slice=index):
            return _number(index)
        case ast.Call(func=ast.Attribute(attr="size"), args=[index]):
            return _number(index)
        case ast.Name(id=name):
            given = [s for s in ast.walk(function) if isinstance(s, ast.Assign) and s.lineno < code.lineno]
            for each in sorted(given, key=lambda s: s.lineno, reverse=True):
                for target in each.targets:
                    names = [
                        getattr(n, "id", None) for n in (target.elts if isinstance(target, ast.Tuple) else [target])
                    ]
                    if name in names:
                        return _given(each.value, names.index(name), len(names), function)
    return None


def _given(value: ast.expr, place: int, count: int, function: ast.FunctionDef) -> int | None:
    """The axis whose length one of several names gets; of names that are given a whole shape, it is their place."""
    if count == 1:
        return None if isinstance(value, ast.Name) else _axis(value, function)
    match value:
        case ast.Attribute(attr="shape") | ast.Call(func=ast.Attribute(attr="size"), args=[]):
            return place
    return None


def _number(code: ast.expr) -> int | None:
    match code:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
            return -number
    return None
