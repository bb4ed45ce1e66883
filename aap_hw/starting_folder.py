"""The folder that relative paths start from, for as long as code of the user's is loaded."""

import contextlib
from pathlib import Path


def working_in(folder: str | Path) -> contextlib.AbstractContextManager[None]:
    """Let relative paths start from a folder, if it is on this machine."""
    return contextlib.chdir(folder) if Path(folder).is_dir() else contextlib.nullcontext()
