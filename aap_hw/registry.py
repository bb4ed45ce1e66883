"""Tables whose entries register themselves by name, where they are defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Entry = TypeVar("Entry")


class Registry(dict[str, Entry]):
    """Entries by name."""

    def register(self, *names: str) -> Callable[[Entry], Entry]:
        """Enter the decorated object under some names. Raises ValueError if one of them is taken."""

        def entered(entry: Entry) -> Entry:
            for name in names:
                if name in self:
                    raise ValueError(f"{name!r} has an entry already")
                self[name] = entry
            return entry

        return entered
