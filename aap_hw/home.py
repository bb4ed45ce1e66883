"""The user's home folder, and the folder below it that keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def provide_home() -> None:
    """Set ``HOME`` if there is no home folder, without which TVM cannot be imported.

    Containers run programs as users without a name and a folder. Docker gives such users ``/``, and so does this.
    """
    if not os.path.isabs(os.path.expanduser("~")):
        os.environ["HOME"] = "/"


def cache_folder(kind: str) -> Path:
    """The folder for a kind of cached files: in ``$XDG_CACHE_HOME/aap-hw``, or else in ``~/.cache/aap-hw``."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # Its specification says to ignore a path that is not absolute.
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "aap-hw" / kind
