"""`aap-hw compile` as a person meets it: what comes out for a CPU and for a GPU that is not there, and what fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm_ffi

from tests.needs import needs_cross_compiler
from tests.quantize.saved import quantised_program

NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
"""
AMPERE = """
name = "ampere"
description = "A GPU elsewhere"

[target]
kind = "cuda"
arch = "sm_80"

[connect]
kind = "local"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "ampere.toml").write_text(AMPERE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


NETWORK = ("--model", "net.py:make", "--input", "3x16x16")


def test_for_a_cpu_it_says_how_large_the_library_is_and_keeps_it_if_asked(
    aap_hw: Callable[..., Any], folder: Path
) -> None:
    outcome = aap_hw("compile", "--device", "x86", *NETWORK, "--out", "net.so")
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"^library: 0\.\d MB, 3 calls of 3 kernels; kept as net\.so$", outcome.out, re.MULTILINE)
    assert re.search(r"^compiled in \d+\.\d s; nothing was run, so nothing was timed$", outcome.out, re.MULTILINE)
    assert "cubin" not in outcome.out
    assert (folder / "net.so").read_bytes()[:4] == b"\x7fELF"


@pytest.mark.parametrize("options", ["size=4k", "ro"])
def test_library_that_cannot_be_kept_is_one_sentence(
    aap_hw: Callable[..., Any], mounted: Callable[[str], Path], options: str
) -> None:
    disk = mounted(options)
    outcome = aap_hw("compile", "--device", "x86", *NETWORK, "--out", f"{disk}/net.so")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    why = "No space left on device" if options != "ro" else f"{disk} is read-only"
    assert outcome.err.startswith(f"aap-hw: error: cannot write {disk}/net.so: {why}; ")
    assert not list(disk.iterdir())


def test_library_is_not_called_like_the_machine_code_beside_it(aap_hw: Callable[..., Any], folder: Path) -> None:
    outcome = aap_hw("compile", "--device", "ampere.toml", *NETWORK, "--out", "net.cubin")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.endswith("; give the library a name that ends in .so\n")
    assert not (folder / "net.cubin").exists()


def test_for_a_gpu_it_ends_with_the_cubin_and_its_kernels(aap_hw: Callable[..., Any], folder: Path) -> None:
    outcome = aap_hw("compile", "--device", "ampere.toml", *NETWORK)
    assert (outcome.code, outcome.err) == (0, "")
    found = re.search(r"^cubin for sm_80: ([\d,]+) bytes, (\d+) kernels, each of the source", outcome.out, re.MULTILINE)
    assert found is not None
    (cached,) = (folder / "cache" / "aap-hw" / "cubin").iterdir()
    assert int(found[1].replace(",", "")) == cached.stat().st_size
    assert int(found[2]) >= 3
    assert outcome.out.endswith("nothing was run, so nothing was timed\n")


def test_kernels_that_are_no_valid_cuda_are_a_failure(aap_hw: Callable[..., Any], folder: Path) -> None:
    name = "tvm_callback_cuda_postproc"  # TVM's own hook for changing a source
    tvm_ffi.register_global_func(name, lambda source, target: source + "\nbroken", override=True)
    try:
        outcome = aap_hw("compile", "--device", "ampere.toml", *NETWORK, "--out", "net.so")
    finally:
        tvm_ffi.registry.remove_global_func(name)
    assert outcome.code == 1
    assert re.fullmatch(r"aap-hw: error: the CUDA kernels do not compile for sm_80: .*error: .*\n", outcome.err)
    assert not (folder / "net.so").exists()


def test_in_int8_it_says_how_many_kernels_read_bytes(aap_hw: Callable[..., Any], folder: Path) -> None:
    np.savez(folder / "seen.npz", x=np.random.default_rng(1).standard_normal((6, 3, 16, 16), "float32"))
    network = ("--model", "net.py:make", "--example", "seen.npz")
    outcome = aap_hw("compile", "--device", "x86", *network, "--precision", "int8", "--out", "net.so")
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"^library: 0\.\d MB, 4 calls of 4 kernels; kept as net\.so$", outcome.out, re.MULTILINE)
    assert re.search(r"^int8: 3 of the 4 calls read bytes$", outcome.out, re.MULTILINE)
    assert (folder / "net.so").read_bytes()[:4] == b"\x7fELF"


def test_a_program_that_torchao_quantised_is_compiled_as_it_is(aap_hw: Callable[..., Any], folder: Path) -> None:
    torch.export.save(quantised_program(), folder / "q.pt2")
    outcome = aap_hw("compile", "--device", "x86", "--model", "q.pt2", "--out", "q.so")
    assert (outcome.code, outcome.err) == (0, "")
    assert "compiling q.pt2 at 3x16x16 for x86 in int8\n" in outcome.out
    assert re.search(r"^int8: 6 of the \d+ calls read bytes$", outcome.out, re.MULTILINE)
    for wrong, sentence in (
        (("--precision", "fp32"), "is quantised in int8 already; leave --precision out"),
        (("--data", "embedded"), "is quantised already; leave --data and --calibration-images out"),
    ):
        assert sentence in aap_hw("compile", "--device", "x86", "--model", "q.pt2", *wrong).err


@needs_cross_compiler
def test_weights_that_a_cpu_has_no_room_for_are_refused(aap_hw: Callable[..., Any], folder: Path) -> None:
    torch.export.save(quantised_program(), folder / "q.pt2")
    refused = aap_hw("compile", "--device", "rpi4", "--model", "q.pt2")
    assert refused.code == 2
    assert re.search(r"quantised weights \S+ reach -128, and kernels for this CPU add up weights of -127", refused.err)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--device", "x86", *NETWORK, "--precision", "int8"), "int8 needs samples .*: give --data or --example"),
        (("--device", "x86", *NETWORK, "--data", "embedded"), "--data and --calibration-images are for .*int8"),
        (
            ("--device", "ampere.toml", *NETWORK, "--precision", "int8", "--data", "embedded"),
            "kernels in int8 are for CPUs so far, and ampere is a GPU; take a network that is not quantised",
        ),
    ],
)
def test_int8_without_samples_or_a_cpu_is_refused(
    aap_hw: Callable[..., Any], options: tuple[str, ...], sentence: str
) -> None:
    outcome = aap_hw("compile", *options)
    assert outcome.code == 2
    assert re.fullmatch(f"aap-hw: error: {sentence}.*\n", outcome.err)
