"""Proves that code for another CPU is linked for it, or that the package of the missing linker is named."""

from __future__ import annotations

import platform
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from aap_hw.compile.keys.target import CpuTarget
from aap_hw.compile.library.linking import linker_of
from aap_hw.compile.library.lowering import compile_network
from aap_hw.device import load_profile
from aap_hw.device.connection import target_of
from aap_hw.errors import UserError
from tests.needs import needs_cross_compiler

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
    ("triple", "package"),
    [
        ("riscv64-linux-gnu", "g\\+\\+-riscv64-linux-gnu"),
        ("armv7l-unknown-linux-gnueabihf", "g\\+\\+-armv7l-linux-gnueabihf"),
    ],
)
def test_missing_linker_is_named_with_the_package_that_has_it(
    monkeypatch: pytest.MonkeyPatch, triple: str, package: str
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    target = CpuTarget.of({"kind": "llvm", "mtriple": triple, "mcpu": "generic"}, threads=1)
    with pytest.raises(UserError, match=rf"not installed; install it with: sudo apt-get install {package}$"):
        linker_of(target)


def test_this_machine_links_for_itself_however_its_platform_is_written() -> None:
    for triple in (f"{platform.machine()}-linux-gnu", f"{platform.machine()}-unknown-linux-gnu"):
        assert linker_of(CpuTarget.of({"kind": "llvm", "mtriple": triple, "mcpu": "generic"}, threads=1)) is None
