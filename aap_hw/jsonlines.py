"""A file of JSON lines that only grows, for what must not be lost: every line is on disk before the next step begins.

Covers the form of the file and its lock, not what the lines mean.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from aap_hw.errors import UserError
from aap_hw.files import WriteError


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of such a file, without one at the end that was cut short; none if there is no file.

    Raises
    ------
    UserError : the file cannot be read, or is no such file.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as problem:
        raise UserError(f"cannot read {path}: {problem.strerror}") from problem
    return _parsed(content, path)


def append_line(file: FileIO, line: Mapping[str, Any]) -> None:
    """Add a line to an unbuffered file; it is on disk when this returns.

    Raises
    ------
    OSError : it could not be written; the file is as it was before.
    """
    end = file.seek(0, os.SEEK_END)
    content = json.dumps(line).encode() + b"\n"
    try:
        while content:
            content = content[file.write(content) :]
        os.fsync(file.fileno())
    except OSError:
        file.truncate(end)
        raise


class JsonLines:
    """Such a file, open to be appended to, by one process at a time.

    A process that dies at any moment loses at most the line that it was writing: what is behind the last line end is
    dropped when the file is opened again.

    Attributes
    ----------
    lines : what the file held when it was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as problem:
            raise self._refused(problem) from problem
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.seek(0)
            content = self._file.read()
            self.lines = _parsed(content, path)
            self._file.truncate(content.rfind(b"\n") + 1)
        except BlockingIOError as problem:
            self._file.close()
            raise UserError(f"another process is writing {path}; wait for it to end") from problem
        except BaseException:
            self._file.close()
            raise

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; it is on disk when this returns.

        Raises
        ------
        WriteError : it could not be written; the file is as it was before.
        """
        try:
            append_line(self._file, line)
        except OSError as problem:
            raise self._refused(problem) from problem

    def close(self) -> None:
        """Close the file, and let other processes have it."""
        self._file.close()

    def _refused(self, problem: OSError) -> WriteError:
        return WriteError(
            f"cannot write {self.path}: {problem.strerror}; check that its folder exists, is writable and has room"
        )


def _parsed(content: bytes, path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise UserError(f"{path} is damaged in line {number} ({problem}); restore it") from problem
        if not isinstance(value, dict):
            raise UserError(f"{path} is damaged in line {number} (no JSON object); restore it")
        lines.append(value)
    return lines
