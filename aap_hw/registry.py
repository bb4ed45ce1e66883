"""Tables that are filled where their entries are written: one entry a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Entry = TypeVar("Entry")


class Registry(dict[str, Entry]):
    """Entries by name."""

    def register(self, *names: str) -> Callable[[Entry], Entry]:
        """Enter what is decorated under some names, each of which is still free."""

        def entered(entry: Entry) -> Entry:
            for name in names:
                if name in self:
                    raise ValueError(f"{name!r} has an entry already")
                self[name] = entry
            return entry

        return entered
