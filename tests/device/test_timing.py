"""Proves how latencies are made of samples: long enough samples, the quick ones count, and turns are really taken.

A clockwork library stands in for a device, so that every number is known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.device.profile import MeasureSpec
from aap_hw.device.timing import (
    SAMPLE_US,
    STATISTIC,
    TURNS,
    Call,
    Timing,
    time_function,
    time_in_turn,
    time_loads_in_turn,
)

INPUTS = [np.zeros(3, "float32")]


@dataclass
class Clockwork:
    """A library whose function takes ``us``, and ten times as long the first time; it writes down who asks for what."""

    us: float
    name: str = "x"
    log: list[tuple[object, ...]] = field(default_factory=list)
    is_warm: bool = False

    def set_inputs(self, function: str, inputs: Sequence[np.ndarray]) -> None:
        self.log.append((self.name, "set", function, len(inputs)))

    def run(self, function: str) -> list[np.ndarray]:
        raise AssertionError(function)

    def time_us(self, function: str, number: int, repeats: int) -> list[float]:
        self.log.append((self.name, "time", function, number, repeats))
        samples = [self.us + i % 2 for i in range(repeats)]
        if not self.is_warm:
            samples[0] *= 10
            self.is_warm = True
        return samples


def test_function_is_warmed_up_and_timed_in_samples_of_one_length() -> None:
    library = Clockwork(us=SAMPLE_US / 20)
    timing = time_function(library, "main", INPUTS, MeasureSpec(warmup=3, repeats=5))
    # The quickest of the three warm-up calls says how many fill a sample.
    assert library.log == [("x", "set", "main", 1), ("x", "time", "main", 1, 3), ("x", "time", "main", 20, 5)]
    # Samples are a microsecond apart: three of the quick ones, two of the others.
    assert timing == Timing(latency_us=SAMPLE_US / 20, spread_us=0.0, samples=5)


@pytest.mark.parametrize("us", [0.0, 0.05, 0.1, 3.0, 0.4 * SAMPLE_US, 0.8 * SAMPLE_US, 2 * SAMPLE_US, 1e6])
def test_slow_functions_are_called_once_a_sample_and_quick_ones_often(us: float) -> None:
    library = Clockwork(us)
    time_function(library, "main", INPUTS, MeasureSpec(warmup=3, repeats=1))
    calls = library.log[-1][3]
    assert isinstance(calls, int)
    if us >= SAMPLE_US:
        assert calls == 1
    elif us >= 0.1:
        assert 0.75 * SAMPLE_US <= calls * us <= 1.25 * SAMPLE_US
    else:  # what cannot be timed is not called for ever
        assert calls == SAMPLE_US / 0.1


def test_without_warm_up_one_call_still_finds_the_length_of_a_sample() -> None:
    library = Clockwork(us=SAMPLE_US / 20)
    time_function(library, "main", INPUTS, MeasureSpec(warmup=0, repeats=2))
    assert library.log[1:] == [("x", "time", "main", 1, 1), ("x", "time", "main", 2, 2)]


def test_libraries_are_timed_in_turn() -> None:
    log: list[tuple[object, ...]] = []
    slow_us, fast_us = SAMPLE_US / 5, SAMPLE_US / 20
    libraries = {"slow": Clockwork(slow_us, "slow", log), "fast": Clockwork(fast_us, "fast", log)}
    timings = time_in_turn(libraries, "main", INPUTS, MeasureSpec(warmup=3, repeats=4), turns=3)
    timed = [entry for entry in log if entry[1] == "time"]
    assert timed[:2] == [("slow", "time", "main", 1, 3), ("fast", "time", "main", 1, 3)]
    assert timed[2:] == [("slow", "time", "main", 5, 4), ("fast", "time", "main", 20, 4)] * 3
    assert timings == {"slow": Timing(slow_us, 0.0, 12), "fast": Timing(fast_us, 0.0, 12)}


def test_loads_share_the_turns_and_come_the_quickest_first() -> None:
    log: list[tuple[object, ...]] = []
    loads = {"a": [900.0, 700.0, 800.0], "b": [500.0, 600.0, 550.0]}
    calls = {name: [Call(Clockwork(us, name, log), "main", INPUTS) for us in each] for name, each in loads.items()}
    timings = time_loads_in_turn(calls, MeasureSpec(warmup=1, repeats=2))
    assert [[each.latency_us for each in timings[name]] for name in loads] == [sorted(each) for each in loads.values()]
    names = [entry[0] for entry in log if entry[1] == "time"][6:]
    assert names == ["a", "a", "a", "b", "b", "b"] * math.ceil(TURNS / 3)


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=30))
def test_latency_is_among_the_quick_samples_whatever_their_order(samples: list[float]) -> None:
    timing = Timing.of(samples)
    assert timing.samples == len(samples)
    assert min(samples) <= timing.latency_us <= float(np.median(samples))
    assert 0 <= timing.spread_us <= max(samples) - min(samples)
    assert Timing.of(sorted(samples)) == timing


def test_latency_is_the_statistic_that_tables_name() -> None:
    assert STATISTIC == "10th percentile"
    assert Timing.of([float(us) for us in range(101)]) == Timing(latency_us=10.0, spread_us=25.0, samples=101)


@given(st.integers(20, 200), st.floats(0, 0.7), st.randoms(use_true_random=False))
def test_interruptions_of_most_samples_change_nothing(count: int, share: float, random: Any) -> None:
    """What a busy machine does: it makes samples longer, often most of them."""
    quiet = [10.0 + i % 3 / 100 for i in range(count)]
    busy = list(quiet)
    for i in random.sample(range(count), int(share * count)):
        busy[i] += random.uniform(1, 1000)
    before, after = Timing.of(quiet), Timing.of(busy)
    assert after.latency_us == pytest.approx(before.latency_us, abs=0.02)
    assert after.spread_us <= 0.02


def test_spread_tells_whether_the_quick_samples_agree() -> None:
    assert Timing.of([10.0] * 5 + [99.0] * 15).spread_us > 0
    assert Timing.of([10.0] * 6 + [99.0] * 14).spread_us == 0
