"""Each room of the compiler knows only those before it, so that a newcomer can read one without the others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import aap_hw.compile

ROOT = Path(aap_hw.compile.__path__[0])
# What a room may import, besides itself and the packages that `aap_hw.compile` stands on.
MAY_IMPORT = {
    "keys": set(),
    "families": {"keys"},
    "front": {"keys", "families"},
    "code": {"keys", "families"},
    "cpu": {"keys", "families", "code"},
    "gpu": {"keys", "families", "code"},
    "library": {"keys", "families", "front", "code", "cpu", "gpu"},
}
WITHOUT_TVM = {"families", "front"}
# Names for code outside, which no room knows.
DOORS = {"lowering.py", "target.py"}


def imports(path: Path) -> Iterator[str]:
    """Everything that a file imports anywhere in it, types included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: names its imports in full"
            yield f"{node.module}.{node.names[0].name}"
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def rooms_in(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    parts = [name.split(".") for name in imports(path) if name.startswith("aap_hw.compile.")]
    return {room for _, _, room, *_ in parts}


def test_every_file_is_in_a_room() -> None:
    assert {path.name for path in ROOT.iterdir() if path.suffix == ".py"} == {"__init__.py", *DOORS}
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))} == MAY_IMPORT.keys()


def test_rooms_import_only_those_before_them() -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(others)
        for room, allowed in MAY_IMPORT.items()
        for path in (ROOT / room).rglob("*.py")
        if (others := rooms_in(path) - allowed - {room})
    }
    assert wrong == {}


def test_what_plans_are_made_of_is_there_without_tvm() -> None:
    """TVM takes two seconds to load, which those who only read tables and networks do without."""
    files = [path for room in WITHOUT_TVM for path in (ROOT / room).rglob("*.py")] + [ROOT / "keys" / "key.py"]
    assert [str(path) for path in files if any(name.startswith("tvm") for name in imports(path))] == []
