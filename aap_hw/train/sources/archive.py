"""A NumPy archive as named arrays: nothing is unpickled, and arrays that cannot be read are refused by name."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from aap_hw.errors import UserError

Array = np.ndarray[Any, Any]
# Exceptions that a damaged or encrypted archive or array may raise.
DAMAGE = (OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error)
ADVICE = "give an .npz file of plain arrays of numbers"


class Archive(Mapping[str, Array]):
    """The arrays of an open archive, each read when it is asked for."""

    def __init__(self, file: NpzFile, path: Path) -> None:
        self._file, self._path = file, path

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def __contains__(self, name: object) -> bool:
        return name in self._file

    def __getitem__(self, name: str) -> Array:
        try:
            array = self._file[name]
        except DAMAGE as problem:
            if name not in self._file:
                raise KeyError(name) from None
            why = "is made of Python objects, which could run code" if "Object arrays" in str(problem) else "is damaged"
            raise UserError(f"{name} of {self._path} {why}; {ADVICE}") from problem
        if not isinstance(array, np.ndarray):
            raise UserError(f"{name} of {self._path} is not an array; {ADVICE}")
        return array


@contextmanager
def opened(path: Path, what: str) -> Iterator[Archive]:
    """An archive of ``what``, for the sentence of an error.

    Raises
    ------
    UserError : the file is missing, or no archive.
    """
    try:
        file = np.load(path, allow_pickle=False)
    except DAMAGE as problem:
        why = getattr(problem, "strerror", None) or "it is no .npz file, or cut short"
        raise UserError(f"cannot read the {what} {path}: {why}; {ADVICE}") from problem
    if not isinstance(file, NpzFile):
        raise UserError(f"{path} is one array and not an archive of several; {ADVICE}")
    with file:
        yield Archive(file, path)


def held(arrays: Mapping[str, Any]) -> str:
    """What a mapping of arrays holds, in a few words."""
    return ", ".join(list(arrays)[:8]) or "nothing"
