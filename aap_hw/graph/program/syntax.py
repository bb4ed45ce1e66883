"""The syntax trees of a model's own source files: functions, statements, what they read of ``self``."""

from __future__ import annotations

import ast
import functools
from pathlib import Path


@functools.lru_cache(maxsize=256)
def functions_of(path: str) -> tuple[ast.FunctionDef, ...]:
    """All functions in a file, none if it cannot be read."""
    try:
        tree = ast.parse(Path(path).read_text("utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def statement_at(function: ast.FunctionDef, line: int) -> ast.stmt:
    """The innermost statement of a function that a line belongs to."""
    statements = [
        s for s in ast.walk(function) if isinstance(s, ast.stmt) and s.lineno <= line <= (s.end_lineno or s.lineno)
    ]
    return max(statements, key=lambda s: s.lineno)


def read_of_self(code: ast.AST) -> list[str]:
    """Names of the attributes of ``self`` that a piece of code reads."""
    reads = [node for node in ast.walk(code) if isinstance(node, ast.Attribute)]
    return list(dict.fromkeys(n.attr for n in reads if isinstance(n.value, ast.Name) and n.value.id == "self"))
