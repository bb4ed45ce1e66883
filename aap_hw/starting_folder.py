"""The folder that relative paths and the names of modules start from, for as long as code of the user's is loaded."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path


def working_in(folder: str | Path) -> contextlib.AbstractContextManager[None]:
    """Let relative paths start from a folder, if it is on this machine."""
    return contextlib.chdir(folder) if Path(folder).is_dir() else contextlib.nullcontext()


@contextlib.contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Make what is in a folder importable, as Python does for a script's own and, with ``-m``, for the working one."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
