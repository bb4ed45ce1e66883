"""Proves what the schedules are told of a CPU, that their tiles fit its registers, and that a bad target is refused.

The facts are those of the instruction sets: 16 registers of 8 floats with AVX2, 32 of 16 with AVX-512, 32 of 4 with
Neon. None of these CPUs needs to be present.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.compile.cpu.emit import Steps, lanes_for
from aap_hw.compile.cpu.tiles import choose_tile
from aap_hw.compile.keys import target as target_module
from aap_hw.compile.keys.target import CpuTarget, GpuTarget, device_target, host_options
from aap_hw.errors import UserError

NEON = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "mattr": ["+neon"]}
CPUS: list[tuple[dict[str, Any], int, int]] = [
    ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"}, 4, 16),
    ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"}, 8, 16),
    ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver3"}, 8, 16),
    ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "skylake-avx512"}, 16, 32),
    ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4"}, 16, 32),
    ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4", "mattr": ["-avx512f"]}, 8, 16),
    (NEON, 4, 32),
    ({"tag": "raspberry-pi/4b-aarch64"}, 4, 32),
]
MODELS = [CpuTarget.of(options, 1) for options, *_ in CPUS]
AVX2 = CpuTarget.of({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"}, 1)
AVX512 = CpuTarget.of({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "skylake-avx512"}, 1)
AVX512_IN_HALVES = CpuTarget.of({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4"}, 1)


@pytest.mark.parametrize(("options", "lanes", "registers"), CPUS, ids=str)
def test_vector_unit_is_that_of_the_cpu(options: dict[str, Any], lanes: int, registers: int) -> None:
    cpu = CpuTarget.of(options, 2)
    assert (cpu.lanes, cpu.registers, cpu.threads) == (lanes, registers, 2)
    assert dict(cpu.options) == {**options, "num-cores": 2}


@given(st.integers(0, len(MODELS) - 1), st.integers(1, 300), st.integers(1, 3000))
def test_tile_fits_the_registers_and_what_it_covers(model: int, pixels: int, channels: int) -> None:
    cpu = MODELS[model]
    tile = choose_tile(pixels, channels, cpu)
    # Accumulators, one tile's weights, and the pixel that they are multiplied with.
    assert tile.pixels * tile.vectors + tile.vectors + 1 <= cpu.registers
    assert tile.pixels <= pixels
    assert tile.channels <= channels
    assert tile.lanes <= cpu.lanes


@given(st.integers(1, 500), st.data())
def test_steps_visit_everything_and_nothing_else(extent: int, data: st.DataObject) -> None:
    steps = Steps(extent, data.draw(st.integers(1, extent)))
    visited = {steps.start(i) + k for i in range(steps.count) for k in range(steps.length)}
    assert visited == set(range(extent))


def test_tile_keeps_the_multipliers_busy_where_sizes_allow_it() -> None:
    for cpu in MODELS:
        tile = choose_tile(56, 256, cpu)
        assert tile.pixels * tile.vectors >= 8


@pytest.mark.parametrize(
    ("channels", "lanes"), [(16, 16), (8, 8), (24, 8), (40, 8), (48, 16), (37, 16), (13, 8), (3, 2), (1, 1)]
)
def test_vector_is_no_longer_than_the_channels_and_half_a_register_where_that_leaves_no_tail(
    channels: int, lanes: int
) -> None:
    assert lanes_for(channels, AVX512_IN_HALVES) == lanes


@pytest.mark.parametrize(("channels", "lanes"), [(16, 16), (8, 8), (24, 16), (104, 16), (37, 16), (15, 8)])
def test_half_an_avx512_register_is_for_fewer_channels_only_where_a_whole_one_takes_as_long(
    channels: int, lanes: int
) -> None:
    assert lanes_for(channels, AVX512) == lanes


@pytest.mark.parametrize(("channels", "lanes"), [(60, 8), (12, 8), (8, 8), (7, 4), (3, 2)])
def test_half_an_avx2_register_costs_a_whole_one_and_is_used_for_fewer_channels_only(channels: int, lanes: int) -> None:
    assert lanes_for(channels, AVX2) == lanes


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kind": "nonsense"}, '"nonsense" is not defined'),
        ({"kind": "llvm", "colour": "red"}, "Unknown config option 'colour'"),
        ({"kind": "llvm", "mcpu": 7}, "expected type 'str'"),
        ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "no-such-cpu"}, "LLVM knows no CPU 'no-such-cpu'"),
        ({**NEON, "mcpu": "znver4"}, "LLVM knows no CPU 'znver4' of the platform aarch64-linux-gnu"),
        ({"tag": "no/tag"}, "Unknown target tag: no/tag"),
        ({}, '"kind" is not found'),
    ],
    ids=str,
)
def test_target_that_tvm_does_not_know_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=r"correct \[target\] in the device profile") as refusal:
        CpuTarget.of(options, 1)
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "options", [{"kind": "cuda", "arch": "sm_87"}, {"tag": "nvidia/jetson-agx-orin-64gb"}], ids=str
)
def test_gpu_has_an_architecture_and_a_host(options: dict[str, Any]) -> None:
    gpu = device_target(options, 1)
    assert isinstance(gpu, GpuTarget)
    assert gpu.arch == "sm_87"
    assert gpu.host.tvm.kind.name == "llvm"
    again = device_target(dict(gpu.options), 1)
    assert again == gpu, "what a worker process makes of the options is the same target"


def test_gpu_of_this_machine_is_missed_in_one_sentence() -> None:
    if tvm.cuda(0).exist:
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match=r"this machine has no NVIDIA GPU with a driver, .* names no other"):
        device_target({"kind": "cuda"}, 1)


def test_kind_without_kernels_is_refused() -> None:
    with pytest.raises(UserError, match=r"there are kernels for the kinds llvm and cuda and not for 'opencl'"):
        device_target({"kind": "opencl"}, 1)


def test_what_a_virtual_machine_hides_of_its_cpu_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module.codegen, "llvm_get_system_cpu", lambda: "znver4")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma\n")
    assert host_options(cpuinfo) == {"kind": "llvm", "mcpu": "znver4", "mattr": ["-avx512f"]}
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma avx512f avx512_vnni avx512_bf16 avx512vbmi\n")
    assert host_options(cpuinfo) == {"kind": "llvm", "mcpu": "znver4"}
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma avx512f avx512_vnni avx512vbmi\n")
    assert host_options(cpuinfo) == {"kind": "llvm", "mcpu": "znver4", "mattr": ["-avx512bf16"]}
    assert host_options(tmp_path / "missing") == {"kind": "llvm", "mcpu": "znver4"}


@pytest.mark.parametrize(("cpu", "kilobytes"), [("haswell", 512), ("znver4", 1024), ("emeraldrapids", 2048)])
def test_second_level_cache_is_that_of_the_cpu(cpu: str, kilobytes: int) -> None:
    options = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": cpu}
    assert CpuTarget.of(options, 1).l2_bytes == kilobytes << 10
