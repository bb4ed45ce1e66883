"""How a function is timed: warmed up, in samples of about half a millisecond, and against others in turn.

Every latency of this project, of one kernel or of a whole network, comes from here. A pack (``aap_hw.pack``) takes this
file along to devices that have nothing else of the project.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aap_hw.activity import doing
from aap_hw.device.machine import LoadedLibrary

# Well below the time slice of a scheduler: on a busy machine most samples then are not interrupted.
SAMPLE_US = 500.0
# How long a function is timed when it is its turn, and how many turns there are: what disturbs a machine for seconds
# then hits a part of everybody's samples instead of all of somebody's.
TURN_US = 20_000.0
TURNS = 40
LEAST_SAMPLES = 3
# How often a network is loaded to be timed: its values lie elsewhere in memory each time, which a latency depends on.
LOADS = 3
# What a latency is made of its samples. Whatever disturbs a device only ever adds to a sample, so the quick ones are
# closest to the truth; the quickest of all may be an accident.
STATISTIC = "10th percentile"


class Measure(Protocol):
    """What a device profile says of timing."""

    @property
    def warmup(self) -> int:
        """Calls before a function is timed."""

    @property
    def repeats(self) -> int:
        """Samples of it."""


@dataclass(frozen=True)
class Timing:
    """Latency by some samples, in microseconds a call.

    Attributes
    ----------
    latency_us : the 10th percentile of the samples.
    spread_us : from the quickest sample to the first quartile: how well the quick samples agree.
    samples : how many there are.
    """

    latency_us: float
    spread_us: float
    samples: int

    @classmethod
    def of(cls, samples_us: Sequence[float]) -> Timing:
        """Summarise at least one sample."""
        least, low, quarter = np.quantile(samples_us, (0, 0.1, 0.25))
        return cls(float(low), float(quarter - least), len(samples_us))


def time_function(library: LoadedLibrary, function: str, inputs: Sequence[np.ndarray], measure: Measure) -> Timing:
    """Time one function of a library."""
    library.set_inputs(function, inputs)
    number = _calls_a_sample(_warm_us(library, function, measure))
    return Timing.of(library.time_us(function, number, measure.repeats))


@dataclass(frozen=True)
class Call:
    """A function of a loaded library, with its arguments."""

    library: LoadedLibrary
    function: str
    inputs: Sequence[np.ndarray]


@doing("timing networks on the device")
def time_in_turn(
    libraries: Mapping[str, LoadedLibrary],
    function: str,
    inputs: Sequence[np.ndarray],
    measure: Measure,
    turns: int = TURNS,
) -> dict[str, Timing]:
    """Time the same function of several libraries, taking turns, so that a drifting clock hits all alike."""
    return time_calls_in_turn({n: Call(library, function, inputs) for n, library in libraries.items()}, measure, turns)


def time_calls_in_turn(calls: Mapping[str, Call], measure: Measure, turns: int = TURNS) -> dict[str, Timing]:
    """Time several functions, taking turns; each is summarised over all of its turns."""
    numbers, repeats = {}, {}
    for name, call in calls.items():
        call.library.set_inputs(call.function, call.inputs)
        us = _warm_us(call.library, call.function, measure)
        numbers[name] = _calls_a_sample(us)
        repeats[name] = min(measure.repeats, max(LEAST_SAMPLES, round(TURN_US / (numbers[name] * us))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            samples[name] += call.library.time_us(call.function, numbers[name], repeats[name])
    return {name: Timing.of(values) for name, values in samples.items()}


def time_loads_in_turn(loads: Mapping[str, Sequence[Call]], measure: Measure) -> dict[str, list[Timing]]:
    """Time functions that were each loaded several times, taking turns; the loads of each with the quickest first.

    All of them together get the turns that each function gets without that.
    """
    calls = {f"{name} {number}": call for name, each in loads.items() for number, call in enumerate(each)}
    found = time_calls_in_turn(calls, measure, math.ceil(TURNS / max(map(len, loads.values()))))
    by_name = {name: [found[f"{name} {number}"] for number in range(len(each))] for name, each in loads.items()}
    return {name: sorted(timings, key=lambda timing: timing.latency_us) for name, timings in by_name.items()}


def _warm_us(library: LoadedLibrary, function: str, measure: Measure) -> float:
    return max(0.1, min(library.time_us(function, number=1, repeats=max(1, measure.warmup))))


def _calls_a_sample(us: float) -> int:
    return max(1, round(SAMPLE_US / us))
