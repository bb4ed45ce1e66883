"""Timing compiled points and networks on a device, beside a reference kernel that says how fast it is just then."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from aap_hw.compile.kernel import KernelKey
from aap_hw.device.connection import Device, LoadedLibrary
from aap_hw.device.profile import MeasureSpec
from aap_hw.device.timing import Call, time_calls_in_turn, time_function
from aap_hw.lut.compiling import CompiledBatch, Compiler
from aap_hw.lut.table import LatencyPoint

# A point counts at once if its samples agree to this share, and the reference kernel beside it is not slower by more
# than that than it was at its best recently. Not ever: a board that gets hot stays slow, and need not be waited for.
STEADY = 0.1
RECENT = 64
TRIES = 4
# How often each of several networks takes its turn.
TURNS = 10
# Beside the names of width plans.
REFERENCE_NAME = "the reference kernel"
REFERENCE = (
    KernelKey.make(
        "conv2d",
        (14, 14),
        1,
        kernel=(1, 1),
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
        epilogue=("bias",),
    ),
    128,
    128,
)


def time_point(library: LoadedLibrary, batch: CompiledBatch, index: int, measure: MeasureSpec) -> LatencyPoint:
    """Time one point of a loaded batch."""
    call = _call(library, batch, index)
    timing = time_function(library, call.function, call.inputs, measure)
    _, width_in, width_out = batch.points[index]
    calls = batch.copies[index]
    return LatencyPoint(width_in, width_out, timing.latency_us / calls, timing.spread_us / calls, timing.samples)


def _call(library: LoadedLibrary, batch: CompiledBatch, index: int) -> Call:
    random = np.random.default_rng(0)
    return Call(library, f"point_{index}", [random.random(shape, dtype=np.float32) for shape in batch.shapes[index]])


class Reference:
    """One fixed kernel, timed again and again: how fast the device is at the moment."""

    def __init__(self, device: Device, pool: Compiler) -> None:
        self._measure = device.profile.measure
        self._batch = pool.submit([REFERENCE]).result()
        self._library = device.load(self._batch.library)
        self._recent_us: deque[float] = deque(maxlen=RECENT)
        self.latest_us = self.time_us()

    @property
    def call(self) -> Call:
        """One call of the compiled reference, which runs the kernel ``calls`` times."""
        return _call(self._library, self._batch, 0)

    @property
    def calls(self) -> int:
        """How often ``call`` runs the kernel."""
        return self._batch.copies[0]

    def time_us(self) -> float:
        """Latency of the reference kernel now."""
        self.latest_us = time_point(self._library, self._batch, 0, self._measure).latency_us
        self._recent_us.append(self.latest_us)
        return self.latest_us

    @property
    def best_us(self) -> float:
        """The quickest of the recent timings: what the device does when it is left alone."""
        return min(self._recent_us)


def time_steadily(time_once: Callable[[], LatencyPoint], reference: Reference) -> tuple[LatencyPoint, float]:
    """Time a point between two timings of the reference kernel, again while the device is not steady.

    Returns the point and the reference latency (µs) that belongs to it. After a few tries the steadiest one counts.
    """
    tries: list[tuple[float, LatencyPoint, float]] = []
    for _ in range(TRIES):
        before = reference.latest_us
        point = time_once()
        after = reference.time_us()
        slowness = max(before, after) / reference.best_us - 1
        unsteadiness = max(slowness, point.spread_us / point.latency_us)
        tries.append((unsteadiness, point, (before + after) / 2))
        if unsteadiness <= STEADY:
            break
    _, point, reference_us = min(tries, key=lambda attempt: attempt[0])
    return point, reference_us


def time_networks(
    libraries: Mapping[str, LoadedLibrary], image: np.ndarray, measure: MeasureSpec, reference: Reference
) -> dict[str, float]:
    """Latency of each network in units of the reference kernel's, all of them timed in turn."""
    calls = {name: Call(library, "main", [image]) for name, library in libraries.items()}
    timings = time_calls_in_turn({**calls, REFERENCE_NAME: reference.call}, measure, TURNS)
    reference_us = timings.pop(REFERENCE_NAME).latency_us / reference.calls
    return {name: timing.latency_us / reference_us for name, timing in timings.items()}
