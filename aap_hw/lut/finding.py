"""Which latency table is meant: a file of the user's, or one that ships with the package."""

from __future__ import annotations

import shlex
from pathlib import Path

from aap_hw import resources
from aap_hw.errors import UserError, closest
from aap_hw.lut.file import load_table
from aap_hw.lut.table import LatencyTable


def find_table(text: str) -> LatencyTable:
    """The latency table in a file, or the shipped one of a bare device name.

    Raises
    ------
    UserError : there is no such table, or it is damaged.
    """
    path = find_file(text)
    try:
        return load_table(path)
    except UserError as problem:
        if path.exists():
            raise
        raise UserError(
            f"{problem}; measure one with 'aap-hw profile --device NAME --model NAME --out {shlex.quote(text)}'"
        ) from problem


def find_file(text: str) -> Path:
    """The file of `find_table`'s table; only a bare name is certain to have one.

    Raises
    ------
    UserError : no table of such a bare name ships.
    """
    path = Path(text)
    if (path.exists() and not path.is_dir()) or len(path.parts) != 1:
        return path
    shipped = shipped_tables()
    if text not in shipped:
        if path.suffix:
            return path
        known = f"there are tables for {', '.join(sorted(shipped))}" if shipped else "none is shipped"
        raise UserError(
            f"there is no latency table '{text}' ({known}; or give the path of a file); 'aap-hw profile' "
            f"makes one{closest(text, shipped)}"
        )
    return shipped[text]


def shipped_tables() -> dict[str, Path]:
    """The tables that come with the package, by the names that they are asked for by."""
    folders = reversed(resources.resource_dirs("lut"))
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.json"))}
