"""Proves that code for another CPU is linked for it, and that what hinders linking and loading is named."""

from __future__ import annotations

import platform
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import tvm
from torch import nn

from aap_hw.compile.keys.target import CpuTarget
from aap_hw.compile.library.linking import link, linker_of
from aap_hw.compile.library.lowering import compile_network
from aap_hw.device import load_profile
from aap_hw.device.connection import load_here, target_of
from aap_hw.device.probe import Reader, compile_probe
from aap_hw.errors import UserError
from aap_hw.files import WriteError
from tests.disks import mounted
from tests.needs import needs_cross_compiler
from tests.synthetic import this_device

__all__ = ["mounted"]

AARCH64 = 183  # in the header of an ELF file


@needs_cross_compiler
@pytest.mark.parametrize("name", ["rpi4", "rpi5", "aarch64"])
def test_network_for_an_arm_board_is_an_arm_library(name: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    compile_network(model, torch.zeros(1, 3, 8, 8), target_of(load_profile(name)), tmp_path / "net.so")
    header = (tmp_path / "net.so").read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", header, 18) == (AARCH64,)


@pytest.mark.parametrize(
    ("triple", "what"),
    [
        ("riscv64-linux-gnu", r"it with: sudo apt-get install g\+\+-riscv64-linux-gnu"),
        ("armv7l-linux-gnueabihf", r"it with: sudo apt-get install g\+\+-arm-linux-gnueabihf"),
        ("armv7a-unknown-linux-gnueabihf", r"it with: sudo apt-get install g\+\+-arm-linux-gnueabihf"),
        ("riscv64-alpine-linux-musl", "a cross compiler of that name"),
    ],
)
def test_missing_linker_is_named_with_the_package_that_has_it(
    monkeypatch: pytest.MonkeyPatch, triple: str, what: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    target = CpuTarget.of({"kind": "llvm", "mtriple": triple, "mcpu": "generic"}, threads=1)
    with pytest.raises(UserError, match=rf"not installed; install {what}$"):
        linker_of(target)


def test_process_that_may_not_write_large_files_is_told_before_llvm_ends_it(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(UserError, match=r"at most 1 MB, and compiled code may be larger; .*\(ulimit -f 65536\)"):
            link(None, this_device().target, tmp_path / "net.so")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_this_machine_links_for_itself_however_its_platform_is_written() -> None:
    for triple in (f"{platform.machine()}-linux-gnu", f"{platform.machine()}-unknown-linux-gnu"):
        assert linker_of(CpuTarget.of({"kind": "llvm", "mtriple": triple, "mcpu": "generic"}, threads=1)) is None


COMPILERS = {
    "none": ("", None, "the path has none of g.., gcc, .*; install one with: sudo apt-get install g.."),
    "one that is named and not there": (
        "",
        "clang++-99 -O1",
        r"CXX says that clang\+\+-99 is the compiler, and it is not",
    ),
    "one whose name has no end": (
        "",
        'g++ "-O1',
        r'CXX says that g\+\+ "-O1 is .* unclosed quote; correct it or unset',
    ),
    "one without a linker": (
        "echo 'collect2: fatal error: cannot find ld' >&2; exit 1",
        None,
        r"/g\+\+ does not link: collect2: fatal error: cannot find ld; see that",
    ),
    "one that says nothing": ("exit 3", None, r"/g\+\+ does not link: its exit code is 3; see that"),
    "one that is no program": ("\0", None, r"cannot run the compiler .*/g\+\+: Exec format error"),
    "one on a full disk": (
        "echo 'ld: final link failed: No space left on device'; exit 1",
        None,
        "set TMPDIR to a folder",
    ),
}


@pytest.mark.parametrize("name", COMPILERS)
def test_compiler_that_does_not_link_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, named, sentence = COMPILERS[name]
    if script:
        (tmp_path / "g++").write_text(script if script == "\0" else f"#!/bin/sh\n{script}\n")
        (tmp_path / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    if named is not None:
        monkeypatch.setenv("CXX", named)
    with pytest.raises(UserError, match=sentence) as refused:
        compile_probe(this_device().target.host, tmp_path / "probe.so")
    assert "\n" not in str(refused.value)


def test_cross_compiler_that_does_not_link_is_not_to_be_named_with_cxx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = {"aarch64": "riscv64"}.get(platform.machine(), "aarch64")
    (compiler := tmp_path / f"{machine}-linux-gnu-g++").write_text("#!/bin/sh\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    target = CpuTarget.of({"kind": "llvm", "mtriple": f"{machine}-linux-gnu"}, threads=1)
    with pytest.raises(UserError, match=r"its exit code is 3; see that it makes shared libraries$"):
        compile_probe(target, tmp_path / "probe.so")


def test_compiler_may_be_named_with_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "env -u NOTHING g++ -O1")
    compile_probe(this_device().target.host, tmp_path / "probe.so")
    assert Reader(load_here(tmp_path / "probe.so"), tvm.cpu()).read(__file__) == Path(__file__).read_bytes()


@pytest.mark.parametrize("room", ["4k", "300k"])
def test_temporary_folder_without_room_is_one_sentence(
    room: str, mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # LLVM, which writes objects, ends the process when it cannot.
    monkeypatch.setattr("tempfile.tempdir", str(disk := mounted(f"size={room}")))
    weights = nn.Conv2d(64, 64, 3)
    with pytest.raises(WriteError, match=f"cannot use the temporary folder {disk}: No space left on device; make room"):
        compile_network(weights, torch.zeros(1, 64, 8, 8), this_device().target, disk / "net.so")
    assert not list(disk.glob("aap-hw-*"))


def test_library_that_cannot_be_loaded_is_one_sentence(
    mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compile_probe(this_device().target.host, library := tmp_path / "probe.so")
    (tmp_path / "short.so").write_bytes(library.read_bytes()[:10])
    with pytest.raises(UserError, match=r"does not load what was compiled for it in .*: file too short; set TMPDIR"):
        load_here(tmp_path / "short.so")
    monkeypatch.setattr("tempfile.tempdir", str(disk := mounted("noexec")))
    with pytest.raises(UserError, match=f"nothing may be run from the temporary folder {disk}, which is .* set TMPDIR"):
        load_here(library)
