"""Timing compiled points and networks on a device, beside a reference kernel that says how fast it is just then.

What disturbs a device only ever adds to a latency, and often for seconds: neighbours in a cache that is shared, a
process that wakes up. So everything is visited several times, with other work in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aap_hw.activity import doing
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.device.connection import Device
from aap_hw.device.machine import LoadedLibrary
from aap_hw.device.profile import MeasureSpec
from aap_hw.device.timing import TURNS, Call, time_calls_in_turn, time_function
from aap_hw.lut.compiling import CompiledBatch, Compiler
from aap_hw.lut.table import LatencyPoint

# A point is settled when its two quickest visits agree to this share of the quickest, or after the last visit.
AGREEMENT = 0.03
VISITS = 8
# Beside the names of width plans.
REFERENCE_NAME = "the reference kernel"
REFERENCE = Address(
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
    (128, 128),
)


def time_point(library: LoadedLibrary, batch: CompiledBatch, index: int, measure: MeasureSpec) -> LatencyPoint:
    """Time one point of a loaded batch."""
    call = _call(library, batch, index)
    timing = time_function(library, call.function, call.inputs, measure)
    calls = batch.copies[index]
    return LatencyPoint(batch.points[index].widths, timing.latency_us / calls, timing.spread_us / calls, timing.samples)


def _call(library: LoadedLibrary, batch: CompiledBatch, index: int) -> Call:
    random = np.random.default_rng(0)
    tensors = zip(batch.shapes[index], batch.types[index], strict=True)
    return Call(library, f"point_{index}", [_random(random, shape, type_) for shape, type_ in tensors])


def _random(random: np.random.Generator, shape: tuple[int, ...], type_: str) -> np.ndarray:
    """Numbers from 0 to 1, or all that a byte can be."""
    if np.dtype(type_).itemsize == 1:
        return random.integers(0, 256, shape, dtype=np.uint8).view(type_)
    return random.random(shape, dtype=np.float32).astype(type_)


class Reference:
    """One fixed kernel, timed again and again: how fast the device is at the moment."""

    def __init__(self, device: Device, compiled: CompiledBatch) -> None:
        self._measure, self._batch = device.profile.measure, compiled
        self._library = device.load(self._batch.library)

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
        return time_point(self._library, self._batch, 0, self._measure).latency_us


def compile_reference(pool: Compiler) -> CompiledBatch:
    """The library that ``Reference`` times."""
    with doing("starting the compiler"):
        return pool.submit([REFERENCE]).result()


@dataclass(frozen=True)
class Visit:
    """A point as it was timed once, and the reference kernel's latency (µs) around that time."""

    key: KernelKey
    point: LatencyPoint
    reference_us: float

    @property
    def ratio(self) -> float:
        """The point's latency in units of the reference kernel's: a slower clock slows both."""
        return self.point.latency_us / self.reference_us


def time_points(
    batches: Sequence[tuple[LoadedLibrary, CompiledBatch]],
    measure: MeasureSpec,
    reference: Reference,
    on_visit: Callable[[Visit, int], None],
    visits: dict[Address, list[Visit]] | None = None,
    most: int = VISITS,
) -> None:
    """Time all points of some loaded batches in turn, again and again until each is settled; its quickest visit counts.

    ``on_visit`` is called with each visit and how often its point has been visited by then. ``visits`` are those that
    were made already, and grows; ``most`` is how many a point has at most.
    """
    made: dict[Address, list[Visit]] = {} if visits is None else visits
    points = [(library, batch, index) for library, batch in batches for index in range(len(batch.points))]
    before = reference.time_us()
    while left := [each for each in points if not _is_done(made.get(each[1].points[each[2]], ()), most)]:
        for library, batch, index in left:
            address = batch.points[index]
            point = time_point(library, batch, index, measure)
            after = reference.time_us()
            made.setdefault(address, []).append(Visit(address.key, point, (before + after) / 2))
            before = after
            on_visit(made[address][-1], len(made[address]))


def _is_done(visits: Sequence[Visit], most: int) -> bool:
    return len(visits) == most or _settled(visits)


def _settled(visits: Sequence[Visit]) -> bool:
    quickest = sorted(visit.ratio for visit in visits)[:2]
    return len(quickest) == 2 and quickest[1] <= quickest[0] * (1 + AGREEMENT)


def time_networks(
    libraries: Mapping[str, LoadedLibrary],
    inputs: Sequence[np.ndarray],
    measure: MeasureSpec,
    reference: Reference,
    turns: int = TURNS,
) -> dict[str, float]:
    """Latency of each network in units of the reference kernel's, all of them timed in turn."""
    calls = {name: Call(library, "main", inputs) for name, library in libraries.items()}
    timings = time_calls_in_turn({**calls, REFERENCE_NAME: reference.call}, measure, turns)
    reference_us = timings.pop(REFERENCE_NAME).latency_us / reference.calls
    return {name: timing.latency_us / reference_us for name, timing in timings.items()}
