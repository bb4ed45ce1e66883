"""Proves that a compiled library is taken from the cache only if it is the one that would be made, byte for byte."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import pytest

from aap_hw.compile.library import build
from aap_hw.errors import UserError
from aap_hw.files import write_atomic
from aap_hw.lut import compiling, library_cache
from aap_hw.lut.compiling import compile_batch
from aap_hw.lut.library_cache import LibraryCache, kernel_sources, users_cache
from aap_hw.lut.measuring import REFERENCE
from tests.lut import tiny


@pytest.fixture
def cache(tmp_path: Path) -> LibraryCache:
    return LibraryCache(tmp_path / "cache" / "kernels", at_most_bytes=100)


def make(cache: LibraryCache, folder: Path, made_from: Any, contents: bytes | None) -> bytes:
    """What the cache gives for ``made_from``; ``contents`` is what compiling would give, None if it must not happen."""

    def compile_into(path: Path) -> None:
        assert contents is not None, "compiled again"
        path.write_bytes(contents)

    library = folder / "library.so"
    cache.make(library, made_from, compile_into)
    return library.read_bytes()


def test_what_was_compiled_once_is_found_and_everything_else_is_compiled(cache: LibraryCache, tmp_path: Path) -> None:
    assert make(cache, tmp_path, ["a", 1], b"first") == b"first"
    assert make(cache, tmp_path, ["a", 2], b"second") == b"second"
    assert make(cache, tmp_path, ["a", 1], None) == b"first"
    assert make(cache, tmp_path, ["a", 2], None) == b"second"


def test_other_kernels_or_another_compiler_make_it_another_library(
    cache: LibraryCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(cache, tmp_path, "a", b"first")
    monkeypatch.setattr(library_cache, "kernel_sources", lambda: "edited")
    assert make(cache, tmp_path, "a", b"second") == b"second"
    monkeypatch.setattr(library_cache.tvm, "__version__", "0.1")
    assert make(cache, tmp_path, "a", b"third") == b"third"
    monkeypatch.setattr(library_cache.torch, "__version__", "2.0")
    assert make(cache, tmp_path, "a", b"fourth") == b"fourth"


@pytest.mark.parametrize("module", [build, compiling])
def test_sources_of_kernels_and_of_what_times_them_are_told_apart_by_every_byte(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real, source = kernel_sources.__wrapped__(), Path.read_bytes, Path(module.__file__ or "")
    monkeypatch.setattr(Path, "read_bytes", lambda path: real(path) + b"\n" * (path == source))
    assert kernel_sources.__wrapped__() != before


@pytest.mark.parametrize("spoiled", [b"other", b"", b"first and more"])
def test_damaged_library_is_deleted_and_made_again(cache: LibraryCache, tmp_path: Path, spoiled: bytes) -> None:
    make(cache, tmp_path, "a", b"first")
    (kept,) = cache.folder.iterdir()
    kept.write_bytes(spoiled)
    assert make(cache, tmp_path, "a", b"first") == b"first"
    assert [file.read_bytes() for file in cache.folder.iterdir()] == [b"first"]


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o702])
def test_folder_that_others_can_write_to_is_refused(cache: LibraryCache, tmp_path: Path, mode: int) -> None:
    make(cache, tmp_path, "a", b"first")
    cache.folder.chmod(mode)
    with pytest.raises(UserError, match=r"others can write to .*'chmod go-w'.*--no-cache"):
        make(cache, tmp_path, "a", None)


def test_place_where_no_folder_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot keep compiled kernels in .*--no-cache"):
        make(LibraryCache(tmp_path / "file" / "cache"), tmp_path, "a", None)


def test_what_was_used_longest_ago_goes_first(cache: LibraryCache, tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        make(cache, tmp_path, name, name.encode() * 30)
        for file in cache.folder.iterdir():
            if file.read_bytes()[:1] == name.encode():
                os.utime(file, (number, number))
    make(cache, tmp_path, "a", None)
    make(cache, tmp_path, "d", b"d" * 30)
    assert sorted(file.read_bytes()[:1] for file in cache.folder.iterdir()) == [b"a", b"c", b"d"]


def test_points_from_the_cache_run_like_those_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, device = LibraryCache(tmp_path / "kernels"), tiny.device()
    compiled = compile_batch([REFERENCE], device.target, 2, tmp_path / "one.so", cache)

    def fail(*_: object) -> NoReturn:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiling, "export_library", fail)
    again = compile_batch([REFERENCE], device.target, 2, tmp_path / "two.so", cache)
    assert (again.points, again.copies, again.shapes) == (compiled.points, compiled.copies, compiled.shapes)
    assert again.library.read_bytes() == compiled.library.read_bytes()
    inputs = [np.ones(shape, dtype=np.float32) for shape in again.shapes[0]]
    library = device.load(again.library)
    library.set_inputs("point_0", inputs)
    # Ones times ones over 128 channels, and a bias of one.
    assert (library.run("point_0")[0] == 129.0).all()
    with pytest.raises(AssertionError, match="compiled again"):
        compile_batch([REFERENCE], device.target, 3, tmp_path / "three.so", cache)


def test_cache_of_a_user_is_where_the_platform_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert users_cache().folder == tmp_path / "aap-hw" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert users_cache().folder == Path("/home/somebody/.cache/aap-hw/kernels")


@pytest.mark.parametrize("fault", ["a file in its place", "others can write", "no room"])
def test_cache_that_cannot_be_used_is_done_without_and_said_once(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = LibraryCache(tmp_path / "cache")
    if fault == "a file in its place":
        cache.folder.write_text("")
    elif fault == "others can write":
        cache.folder.mkdir(mode=0o777)
        cache.folder.chmod(0o777)
    else:
        monkeypatch.setattr("aap_hw.files.os.fsync", full_disk)
    said: list[str] = []
    assert cache.usable(said.append) is None
    (sentence,) = said
    assert sentence.startswith("compiled kernels are not kept: ")


def test_disk_that_fills_up_meanwhile_keeps_no_library_and_stops_nobody(
    cache: LibraryCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    assert (cache.usable(said.append), said, [*cache.folder.iterdir()]) == (cache, [], [])
    monkeypatch.setattr("aap_hw.files.os.fsync", full_disk)
    assert make(cache, tmp_path, "a", b"first") == b"first"
    assert not [*cache.folder.iterdir()]


def test_library_that_another_process_deletes_meanwhile_was_still_found(
    cache: LibraryCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(cache, tmp_path, "a", b"first")
    write = Path.write_bytes

    def write_late(path: Path, contents: bytes) -> int:
        for kept in cache.folder.iterdir():
            kept.unlink()
        return write(path, contents)

    monkeypatch.setattr(Path, "write_bytes", write_late)
    assert make(cache, tmp_path, "a", None) == b"first"


def test_two_processes_may_try_the_cache_at_once(cache: LibraryCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def try_twice(path: Path, contents: bytes) -> None:
        write_atomic(path, contents)
        path.unlink()  # by the other one

    monkeypatch.setattr(library_cache, "write_atomic", try_twice)
    said: list[str] = []
    assert (cache.usable(said.append), said) == (cache, [])


def full_disk(_: int) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")
