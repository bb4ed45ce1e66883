"""Each room of the channel graph knows only those before it, so that a newcomer can read one without the others."""

from __future__ import annotations

import aap_hw.graph
from tests.rooms import rooms_of, root_of, wrong_imports

# What a room may import, besides itself and the packages that `aap_hw.graph` stands on.
MAY_IMPORT = {
    "program": set(),
    "walk": {"program"},
    "groups": {"program", "walk"},
    "cut": {"program", "walk", "groups"},
    "trial": {"program", "walk", "groups", "cut"},
    "check": {"program", "walk", "groups", "cut", "channel_graph"},
}
# Names for code outside, which no room but the last knows.
DOORS = {"channel_graph.py", "selection.py"}


def test_every_file_is_in_a_room() -> None:
    assert {path.name for path in root_of(aap_hw.graph).glob("*.py")} == {"__init__.py", *DOORS}
    assert rooms_of(aap_hw.graph) == MAY_IMPORT.keys()


def test_rooms_import_only_those_before_them() -> None:
    assert wrong_imports(aap_hw.graph, MAY_IMPORT) == {}
