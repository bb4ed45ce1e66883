"""Compiled libraries of table points, kept on disk for the next profile of the same points.

A library is found by all that it was made from: the points, the target, the compiler, PyTorch (which takes operators on
the slow path apart), and the sources of our kernels. Loading a library runs it, so the folder must be the user's own,
and a file whose contents are not those that its name tells is deleted and made again. A library that cannot be kept is
still used. Whole networks are not kept: their weights make them large, and few are compiled twice.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tvm

import aap_hw.compile
from aap_hw.errors import UserError
from aap_hw.files import WriteError, read_optional, write_atomic
from aap_hw.home import cache_folder

# Points of some twenty networks; the libraries that were used longest ago go first.
AT_MOST_BYTES = 1 << 30
# About a library of a few points: a disk without room for one is as good as none.
TRIAL_BYTES = 1 << 20


@dataclass(frozen=True)
class LibraryCache:
    """A folder of libraries, of no more than ``at_most_bytes`` together."""

    folder: Path
    at_most_bytes: int = AT_MOST_BYTES

    def usable(self, notify: Callable[[str], None]) -> LibraryCache | None:
        """This cache, or None and a sentence of why, if libraries cannot be kept in it."""
        try:
            self._require_own_folder()
            trial = self.folder / "trial"
            write_atomic(trial, bytes(TRIAL_BYTES))
            trial.unlink(missing_ok=True)  # another process may have tried, too
        except UserError as problem:
            notify(f"compiled kernels are not kept: {problem}")
            return None
        return self

    def make(self, library: Path, made_from: Any, compile_into: Callable[[Path], None]) -> None:
        """Write a library, by ``compile_into`` if it is not here.

        ``made_from`` is what it depends on besides compiler, PyTorch and kernels, as JSON values.

        Raises
        ------
        UserError : others can write to the folder.
        """
        self._require_own_folder()
        depends_on = [made_from, tvm.__version__, torch.__version__, kernel_sources()]
        key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]
        for kept in self.folder.glob(f"{key}-*.so"):
            contents = read_optional(kept)
            if contents is not None and kept.name == _name(key, contents):
                library.write_bytes(contents)
                with contextlib.suppress(OSError):  # another process may have deleted it to make room
                    os.utime(kept)
                return
            kept.unlink(missing_ok=True)
        compile_into(library)
        contents = library.read_bytes()
        with contextlib.suppress(WriteError):  # a disk that is full by now
            write_atomic(self.folder / _name(key, contents), contents)
        self._shrink()

    def _require_own_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            status = self.folder.stat()
        except OSError as problem:
            raise UserError(
                f"cannot keep compiled kernels in {self.folder}: {problem.strerror}; set XDG_CACHE_HOME to a folder "
                "that can be written, or add --no-cache"
            ) from problem
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise UserError(
                f"others can write to {self.folder}, and libraries from there would run with your rights; make it your "
                "own ('chmod go-w'), or add --no-cache"
            )

    def _shrink(self) -> None:
        found = []
        for path in self.folder.glob("*.so"):
            try:
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            except FileNotFoundError:
                continue  # another process was quicker
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.at_most_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size


def users_cache() -> LibraryCache:
    """The cache in the user's own folder: ``$XDG_CACHE_HOME/aap-hw/kernels``, or below ``~/.cache``."""
    return LibraryCache(cache_folder("kernels"))


@functools.cache
def kernel_sources() -> str:
    """Digest of the sources that kernels are made by, and that wrap them into what is timed."""
    digest = hashlib.sha256()
    for path in [*sorted(Path(aap_hw.compile.__path__[0]).rglob("*.py")), Path(__file__).with_name("compiling.py")]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _name(key: str, contents: bytes) -> str:
    return f"{key}-{hashlib.sha256(contents).hexdigest()}.so"
