"""The folder that the names of modules start from, as they do for Python, while code of the user's is loaded."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Make what is in a folder importable, as Python does for a script's own and, with ``-m``, for the working one."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
