"""How a function is timed: warmed up, in samples of about half a millisecond, and against others in turn.

Every latency of this project, of one kernel or of a whole network, comes from here.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aap_hw.device.connection import LoadedLibrary
from aap_hw.device.profile import MeasureSpec

# Well below the time slice of a scheduler: on a busy machine most samples then are not interrupted.
SAMPLE_US = 500.0


@dataclass(frozen=True)
class Timing:
    """Median and interquartile range of the samples, in microseconds a call."""

    median_us: float
    spread_us: float
    samples: int

    @classmethod
    def of(cls, samples_us: Sequence[float]) -> Timing:
        """Summarise at least one sample."""
        if len(samples_us) == 1:
            return cls(samples_us[0], 0.0, 1)
        low, middle, high = statistics.quantiles(samples_us, n=4)
        return cls(middle, high - low, len(samples_us))


def time_function(library: LoadedLibrary, function: str, inputs: Sequence[np.ndarray], measure: MeasureSpec) -> Timing:
    """Time one function of a library."""
    library.set_inputs(function, inputs)
    number = _calls_a_sample(library, function, measure)
    return Timing.of(library.time_us(function, number, measure.repeats))


def time_in_turn(
    libraries: Mapping[str, LoadedLibrary],
    function: str,
    inputs: Sequence[np.ndarray],
    measure: MeasureSpec,
    turns: int = 5,
) -> dict[str, Timing]:
    """Time the same function of several libraries, taking turns, so that a drifting clock hits all alike."""
    numbers = {}
    for name, library in libraries.items():
        library.set_inputs(function, inputs)
        numbers[name] = _calls_a_sample(library, function, measure)
    samples: dict[str, list[float]] = {name: [] for name in libraries}
    for _ in range(turns):
        for name, library in libraries.items():
            samples[name] += library.time_us(function, numbers[name], measure.repeats)
    return {name: Timing.of(values) for name, values in samples.items()}


def _calls_a_sample(library: LoadedLibrary, function: str, measure: MeasureSpec) -> int:
    warm = library.time_us(function, number=1, repeats=max(1, measure.warmup))
    return max(1, round(SAMPLE_US / max(min(warm), 0.1)))
