"""The user's home folder, and the folder below it that keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def provide_home() -> None:
    """Let there be a home folder, which TVM asks for as it is imported.

    Containers run programs as users without a name and a folder. They get the root folder, as Docker gives it to them.
    """
    if not os.path.isabs(os.path.expanduser("~")):
        os.environ["HOME"] = "/"


def cache_folder(kind: str) -> Path:
    """The folder for a kind of cached files: in ``$XDG_CACHE_HOME/aap-hw``, or else in ``~/.cache/aap-hw``."""
    told = os.environ.get("XDG_CACHE_HOME", "")
    # As its specification says, one that is not absolute is none.
    return (Path(told) if os.path.isabs(told) else Path.home() / ".cache") / "aap-hw" / kind
