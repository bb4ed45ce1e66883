"""What is counted in a kernel's loops is what its formula says, and what is estimated of that is of the right size."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import CpuTarget, device_target
from aap_hw.compile.library.build import build_kernel
from aap_hw.device import load_profile
from aap_hw.device.profile import BoardSpec, DeviceProfile
from aap_hw.errors import UserError
from aap_hw.estimate import published as publications
from aap_hw.estimate.correction import Shares, fitted_shares
from aap_hw.estimate.estimator import estimator_of
from aap_hw.estimate.indices import range_of
from aap_hw.estimate.published import range_beside
from aap_hw.estimate.reading import Loop, read_program
from aap_hw.estimate.terms import Terms
from aap_hw.estimate.traffic import STORED, Traffic
from aap_hw.lut.measuring import REFERENCE

POINTWISE = REFERENCE.key
WIDTHS = 64, 96


def target_of(cpu: str, triple: str, *features: str) -> CpuTarget:
    options: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mcpu": cpu}
    target = device_target({**options, **({"mattr": list(features)} if features else {})}, 1)
    assert isinstance(target, CpuTarget)
    return target


A72 = target_of("cortex-a72", "aarch64-linux-gnu", "+neon")
ZEN4 = target_of("znver4", "x86_64-linux-gnu")


def program_of(address: Address, target: CpuTarget) -> Any:
    return read_program(build_kernel(address, target).code, target, {})


def executed(loop: Loop, name: str, times: float = 1.0) -> float:
    turns = times * loop.extent
    return turns * getattr(loop, name) + sum(executed(each, name, turns) for each in loop.inside)


@pytest.mark.parametrize("target", [A72, ZEN4], ids=["cortex-a72", "znver4"])
def test_a_convolution_executes_as_many_multiply_adds_as_its_formula_says(target: CpuTarget) -> None:
    whole = program_of(Address(POINTWISE, WIDTHS), target).whole
    products = 14 * 14 * math.prod(WIDTHS) / (target.unit_bytes // 4)
    # Tiles that end with the row, or the channels, may overlap the ones before.
    assert products <= executed(whole, "multiply_adds") <= 1.1 * products


def test_bytes_are_multiplied_and_added_by_the_instructions_that_arm_has_for_it() -> None:
    """Without dot products: of sixteen pairs two products, of eight each, and one that adds up neighbours."""
    key = KernelKey.make("conv2d", (14, 14), 1, kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    whole = program_of(Address(replace(key, precision="int8"), WIDTHS), A72).whole
    products = 14 * 14 * math.prod(WIDTHS) / 8
    counted = executed(whole, "multiply_adds") + executed(whole, "arithmetic")
    assert 1.5 * products <= counted <= 2 * products


def test_into_an_empty_cache_with_room_for_all_goes_every_byte_once_and_the_output_also_back() -> None:
    program = program_of(Address(POINTWISE, WIDTHS), A72)
    image, weights, bias, output = 14 * 14 * 64, 64 * 96, 96, 14 * 14 * 96
    assert Traffic(program, threads=1).bytes_into(1 << 30, is_shared=True) == 4 * (
        image + weights + bias + STORED * output
    )


def test_a_smaller_cache_is_filled_with_more_bytes() -> None:
    traffic = Traffic(program_of(Address(POINTWISE, (256, 512)), A72), threads=1)
    moved = [traffic.bytes_into(kib << 10, is_shared=False) for kib in (1, 32, 256, 4096)]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > 2 * moved[-1]


def test_threads_fetch_common_weights_once_into_a_shared_cache_and_each_into_its_own() -> None:
    four = replace(A72, options=A72.options, threads=4)
    traffic = Traffic(program_of(Address(POINTWISE, WIDTHS), four), threads=4)
    image, weights, bias, output = 4 * 14 * 14 * 64, 4 * 64 * 96, 4 * 96, 4 * 14 * 14 * 96
    shared, own = (traffic.bytes_into(1 << 30, is_shared=each) for each in (True, False))
    assert shared == pytest.approx(image + weights + bias + STORED * output, rel=0.05)
    assert own == pytest.approx(image / 4 + weights + bias + STORED * output / 4, rel=0.05)


operators = st.sampled_from(["Add", "Sub", "Mul", "Min", "Max"])
leaves = st.one_of(st.tuples(st.just("number"), st.integers(-5, 5)), st.tuples(st.just("variable"), st.integers(0, 1)))
expressions = st.recursive(leaves, lambda inner: st.tuples(operators, inner, inner), max_leaves=6)
divided = st.builds(
    lambda op, a, n: (op, a, ("number", n)), st.sampled_from(["FloorDiv", "FloorMod"]), expressions, st.integers(1, 7)
)


def value_of(index: Any, values: tuple[int, int]) -> float:
    if index[0] == "number":
        return index[1]
    if index[0] == "variable":
        return values[index[1]]
    a, b = (value_of(each, values) for each in index[1:])
    return {
        "Add": lambda: a + b,
        "Sub": lambda: a - b,
        "Mul": lambda: a * b,
        "Min": lambda: min(a, b),
        "Max": lambda: max(a, b),
        "FloorDiv": lambda: a // b,
        "FloorMod": lambda: a % b,
    }[index[0]]()


@given(st.one_of(expressions, divided))
def test_no_value_of_an_index_lies_outside_its_range(index: Any) -> None:
    low, high = range_of(index, {0: (0, 4), 1: (-2, 3)})
    assert all(low <= value_of(index, values) <= high for values in product(range(5), range(-2, 4)))


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Min", "Max"])
def test_both_ends_of_the_range_of_two_loops_are_reached(operator: str) -> None:
    index = operator, ("variable", 0), ("variable", 1)
    reached = [value_of(index, values) for values in product(range(5), range(-2, 4))]
    assert range_of(index, {0: (0, 4), 1: (-2, 3)}) == (min(reached), max(reached))


def board_of(**changes: float) -> DeviceProfile:
    profile = load_profile("rpi4")
    assert profile.board is not None
    return profile.model_copy(update={"threads": 1, "board": BoardSpec(**{**profile.board.model_dump(), **changes})})


def latency_us(profile: DeviceProfile, address: Address) -> float:
    return estimator_of(profile).latency_us(address)


def test_a_dense_kernel_takes_a_little_more_than_the_peak_of_its_core_allows() -> None:
    # One multiply-add of four values a cycle, at 1.8 GHz.
    peak_us = 14 * 14 * 256 * 256 / 4 / 1.8e3
    assert peak_us < latency_us(board_of(), Address(POINTWISE, (256, 256))) < 1.5 * peak_us


def test_a_faster_clock_more_memory_bandwidth_and_more_threads_each_shorten_a_latency() -> None:
    alone, dense = board_of(), Address(POINTWISE, (256, 256))
    linear = Address(KernelKey.make("linear", (), 1, epilogue=("bias",)), (1280, 1000))
    assert latency_us(board_of(clock_ghz=3.6), dense) < 0.6 * latency_us(alone, dense)
    assert latency_us(board_of(memory_gb_s=56.0), linear) < 0.5 * latency_us(alone, linear)
    four = alone.model_copy(update={"threads": 4})
    assert latency_us(alone, dense) > 2 * latency_us(four, dense)


def test_another_figure_of_a_board_is_another_method() -> None:
    methods = {estimator_of(board_of(**{name: 7})).method for name in ("clock_ghz", "l1_kib", "l3_kib", "fork_us")}
    assert len(methods | {estimator_of(board_of()).method}) == 5


def test_what_cannot_be_estimated_is_refused_with_a_way_out() -> None:
    profile = load_profile("rpi4")
    with pytest.raises(UserError, match=r"no table \[board\]"):
        estimator_of(profile.model_copy(update={"board": None}))
    other = profile.model_copy(update={"target": profile.target.model_copy(update={"mcpu": "cortex-a53"})})
    with pytest.raises(UserError, match="pipeline of a cortex-a53"):
        estimator_of(other)
    for gpu in ("cuda", "jetson-orin"):
        with pytest.raises(UserError, match=f"latencies of GPUs are not estimated, and {gpu} is one"):
            estimator_of(load_profile(gpu))


def test_threads_that_share_nothing_wait_longer_for_memory() -> None:
    four = estimator_of(board_of().model_copy(update={"threads": 4}))
    square = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "epilogue": ("bias",)}
    kernel = Address(KernelKey.make("conv2d", (7, 7), 1, **square), (512, 512))
    together, apart = (replace(four.machine, is_apart=each).terms(kernel, four.target) for each in (False, True))
    assert (apart.arithmetic, apart.threads) == (together.arithmetic, together.threads)
    assert apart.caches == pytest.approx(4 * together.caches)
    assert apart.memory > 2 * together.memory > 0
    alone = estimator_of(board_of())
    assert replace(alone.machine, is_apart=True).terms(kernel, alone.target) == alone.machine.terms(
        kernel, alone.target
    )


def test_estimates_are_held_against_the_quickest_engine_of_each_case(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"device": "board", "model": "a", "precision": "fp32", "threads": 4}
    rows = [
        {**case, "ms": 40, "estimated_ms": 10},
        {**case, "ms": 20, "estimated_ms": 10},
        {**case, "model": "b", "threads": None, "ms": 10, "estimated_ms": 8},
        {**case, "model": "c", "threads": 1, "ms": 10, "estimated_ms": 1},
        {**case, "device": "other", "ms": 10, "estimated_ms": 1},
    ]
    monkeypatch.setattr(publications, "published", lambda: {"methods": {"board": "this one"}, "rows": rows})
    assert range_beside("board", 4, "this one") == (0.5, 0.8)
    assert range_beside("board", 4, "another") is None
    assert range_beside("nowhere", 4, "this one") is None


def test_shares_are_found_again_from_latencies_made_with_them() -> None:
    true = Shares(1.1, 0.4, 2.0)
    terms = [Terms(float(a), float(c), float(m), 0.3, 0.0) for a, c, m in product((1, 9, 80), (1, 20), (0, 30))]
    found = fitted_shares(terms, [true.latency_us(each) for each in terms])
    assert found == Shares(*(pytest.approx(each, rel=1e-3) for each in (1.1, 0.4, 2.0)))
    assert replace(found, call=0.0).latency_us(terms[0]) < found.latency_us(terms[0])
