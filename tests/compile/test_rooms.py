"""Each room of the compiler knows only those before it, so that a newcomer can read one without the others."""

from __future__ import annotations

import aap_hw.compile
from tests.rooms import imports, rooms_of, root_of, wrong_imports

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


def test_every_file_is_in_a_room() -> None:
    assert {path.name for path in root_of(aap_hw.compile).glob("*.py")} == {"__init__.py"}
    assert rooms_of(aap_hw.compile) == MAY_IMPORT.keys()


def test_rooms_import_only_those_before_them() -> None:
    assert wrong_imports(aap_hw.compile, MAY_IMPORT) == {}


def test_what_plans_are_made_of_is_there_without_tvm() -> None:
    """TVM takes two seconds to load, which those who only read tables and networks do without."""
    rooms = root_of(aap_hw.compile)
    files = [path for room in WITHOUT_TVM for path in (rooms / room).rglob("*.py")] + [rooms / "keys" / "key.py"]
    assert [str(path) for path in files if any(name.startswith("tvm") for name in imports(path))] == []
