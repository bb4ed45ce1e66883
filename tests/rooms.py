"""Which rooms of a package a file imports from: for the tests that hold each package's order of rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType


def imports(path: Path) -> Iterator[str]:
    """Everything that a file imports anywhere in it, types included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: names its imports in full"
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def root_of(package: ModuleType) -> Path:
    """The folder that a package's files lie in."""
    return Path(package.__path__[0])


def rooms_of(package: ModuleType) -> set[str]:
    """The rooms that a package has: its folders with code in them."""
    return {path.name for path in root_of(package).iterdir() if path.is_dir() and any(path.glob("*.py"))}


def wrong_imports(package: ModuleType, may_import: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """For each file of a package, the rooms that it imports from but may not; files that do right are left out."""
    prefix = f"{package.__name__}."

    def rooms_in(path: Path) -> set[str]:
        return {name.removeprefix(prefix).split(".")[0] for name in imports(path) if name.startswith(prefix)}

    return {
        str(path.relative_to(root_of(package))): sorted(others)
        for room, allowed in may_import.items()
        for path in sorted((root_of(package) / room).rglob("*.py"))
        if (others := rooms_in(path) - allowed - {room})
    }
