"""Latency tables that nobody measured: by formula, and at random."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import strategies as st

from aap_hw.compile.keys.key import SCHEDULES, KernelKey
from aap_hw.compile.keys.precision import PLANNED_PRECISIONS, PRECISIONS
from aap_hw.lut.calibrating import Slowdown
from aap_hw.lut.table import LatencyPoint, LatencyTable, Validation
from tests.inputs import inputs_of_all_kinds

KEY = KernelKey.make("conv2d", (7, 7), 1, kernel=(3, 3), stride=(1, 1), epilogue=("bias", "relu"))


def facts() -> dict[str, Any]:
    return {
        "name": "board-1",
        "profile_hash": "0123456789ab",
        "cpu": "a CPU",
        "threads": 2,
        "target": {"kind": "llvm", "mcpu": "haswell", "num-cores": 2, "mattr": ["+avx2"]},
        "tvm": "0.27.0",
        "schedules": SCHEDULES,
        "host": "Linux",
        "date": "2026-01-31",
        "provenance": "measured",
    }


def measurement() -> dict[str, Any]:
    return {
        "warmup": 3,
        "repeats": 20,
        "copies": 4,
        "statistic": "median",
        "reference_us": 81.5,
        "reference_drift": 0.03,
        "granularity": 8,
        "at_most": 8,
    }


def empty() -> LatencyTable:
    return LatencyTable(facts(), measurement())


def of_formula(
    points: Iterable[tuple[int, int]], formula: Callable[[int, int], float], key: KernelKey = KEY
) -> LatencyTable:
    table = empty()
    for width_in, width_out in points:
        table.add(key, LatencyPoint((width_in, width_out), formula(width_in, width_out), 0.0, 20))
    return table


# What survives four significant digits.
latencies = st.builds(lambda digits, power: float(f"{digits}e{power}"), st.integers(1000, 9999), st.integers(-5, 3))
keys = st.builds(
    lambda op, size, kernel, precision: KernelKey.make(op, size, 1, kernel=kernel, epilogue=("bias",)).at_precision(
        precision
    ),
    st.sampled_from(["conv2d", "depthwise_conv2d", "linear", "add"]),
    st.one_of(st.just(()), st.tuples(st.integers(1, 224), st.integers(1, 224))),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from(sorted(PRECISIONS)),
)
measured_points = st.builds(
    LatencyPoint, st.tuples(st.integers(1, 4096), st.integers(1, 4096)), latencies, latencies, st.integers(1, 100)
)
validations = st.builds(
    Validation,
    st.text(min_size=1, max_size=8),
    inputs_of_all_kinds(),
    st.sampled_from(["dense", "half"]),
    st.dictionaries(st.text(), st.integers(1, 2048), max_size=3),
    latencies,
    latencies,
    st.sampled_from(PLANNED_PRECISIONS),
    st.lists(st.text(max_size=4), max_size=2).map(tuple),
)


@st.composite
def tables(draw: st.DrawFn) -> LatencyTable:
    table = empty()
    table.device["cpu"] = draw(st.text())
    for key in draw(st.lists(keys, max_size=4)):
        for point in draw(st.lists(measured_points, min_size=1, max_size=6)):
            table.add(key, point)
    table.validation.extend(draw(st.lists(validations, max_size=3)))
    for entry in table.validation:
        table.slowdowns[entry.network] = Slowdown(draw(latencies), draw(latencies), 0.5)
    return table
