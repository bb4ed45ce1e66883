"""The syntax trees of a model's own source files: functions, statements, what they read of ``self``."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import TypeVar

_Tree = TypeVar("_Tree", bound=ast.AST)
_SELF = "self"


@functools.lru_cache(maxsize=256)
def functions_of(path: str) -> tuple[ast.FunctionDef, ...]:
    """All functions in a file, none if it cannot be read. Methods call their module ``self``."""
    try:
        tree = ast.parse(Path(path).read_text("utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ()
    return tuple(node for node in ast.walk(with_self(tree)) if isinstance(node, ast.FunctionDef))


def with_self(tree: _Tree) -> _Tree:
    """A tree of classes whose methods call their first parameter ``self``, whatever their author calls it."""
    for kind in ast.walk(tree):
        for method in kind.body if isinstance(kind, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef) and not _is_of_class(method):
                _rename_first(method)
    return tree


def statement_at(function: ast.FunctionDef, line: int) -> ast.stmt:
    """The innermost statement of a function that a line belongs to."""
    statements = [
        s for s in ast.walk(function) if isinstance(s, ast.stmt) and s.lineno <= line <= (s.end_lineno or s.lineno)
    ]
    return max(statements, key=lambda s: s.lineno)


def read_of_self(code: ast.AST) -> list[str]:
    """Names of the attributes of ``self`` that a piece of code reads, and of what they hold.

    Both ``self.config.width`` and ``self.config["width"]`` are ``"config.width"``.
    """
    return list(dict.fromkeys(name for each in ast.walk(code) if (name := _name_of(each))))


def _name_of(code: ast.AST) -> str:
    match code:
        case ast.Attribute(value=ast.Name(id=holder), attr=name) if holder == _SELF:
            return name
        case ast.Attribute(value=value, attr=name) | ast.Subscript(value=value, slice=ast.Constant(value=str(name))):
            holder = _name_of(value)
            return f"{holder}.{name}" if holder and name.isidentifier() else ""
    return ""


def _is_of_class(method: ast.FunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id in ("staticmethod", "classmethod") for d in method.decorator_list)


def _rename_first(method: ast.FunctionDef) -> None:
    first = next(iter([*method.args.posonlyargs, *method.args.args]), None)
    if first is None or first.arg == _SELF:
        return
    name, first.arg = first.arg, _SELF
    for node in ast.walk(method):
        if isinstance(node, ast.Name) and node.id == name:
            node.id = _SELF
