"""Timing compiled points and networks on a device, beside a reference kernel that says how fast it is just then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aap_hw.activity import doing
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.device.connection import Device
from aap_hw.device.machine import LoadedLibrary, made_up
from aap_hw.device.profile import MeasureSpec
from aap_hw.device.timing import TURNS, Call, time_calls_in_turn, time_function
from aap_hw.device.visiting import VISITS, visit_in_turn
from aap_hw.lut.compiling import CompiledBatch, Compiler
from aap_hw.lut.table import LatencyPoint

Place = tuple[LoadedLibrary, CompiledBatch, int]
"""A point of a loaded batch, by its number there."""
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
    return Call(library, f"point_{index}", made_up(batch.shapes[index], batch.types[index]))


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

    def record(place: Place, point: LatencyPoint, reference_us: float) -> None:
        address = _address(place)
        made.setdefault(address, []).append(Visit(address.key, point, reference_us))
        on_visit(made[address][-1], len(made[address]))

    visit_in_turn(
        [(library, batch, index) for library, batch in batches for index in range(len(batch.points))],
        lambda place: time_point(*place, measure),
        reference.time_us,
        lambda place: [visit.ratio for visit in made.get(_address(place), ())],
        record,
        most,
    )


def _address(place: Place) -> Address:
    _, batch, index = place
    return batch.points[index]


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
