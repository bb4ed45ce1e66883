"""The latency table: measured latencies of kernels by their widths, for one device.

Holds and looks up; measuring is ``aap_hw.lut.profiling``, and the file's form is ``aap_hw.lut.file``.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import SCHEDULES, KernelKey
from aap_hw.compile.keys.precision import (
    FP32,
    HALF,
    INT8,
    INT8_HALF,
    MIXED_HALF,
    NetworkPrecision,
    in_precision,
    unpruned_in,
)
from aap_hw.device.description import ESTIMATED
from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.lut.calibrating import ALONE, Slowdown


@dataclass(frozen=True)
class LatencyPoint:
    """One latency, measured or estimated.

    Attributes
    ----------
    widths : of the kernel's address.
    latency_us, spread_us : latency of a call and how well the samples behind it agree, in microseconds; see
        ``aap_hw.device.timing``.
    samples : how many samples there were; none of an estimate.
    """

    widths: tuple[int, ...]
    latency_us: float
    spread_us: float
    samples: int

    @property
    def width_in(self) -> int:
        """Channels that the kernel reads."""
        return self.widths[0]

    @property
    def width_out(self) -> int:
        """Channels that the kernel makes."""
        return self.widths[-1]


@dataclass(frozen=True)
class Latency:
    """A looked-up latency, and whether it was measured at exactly these widths."""

    us: float
    interpolated: bool


@dataclass(frozen=True)
class NetworkName:
    """What a table calls a whole network: the model, what it takes, and what it computes in."""

    model: str
    inputs: Inputs
    precision: NetworkPrecision = FP32

    @property
    def text(self) -> str:
        """Such as ``resnet20 at 3x32x32``, or ``resnet20 at 3x32x32 in int8``."""
        return f"{self.model} at {self.inputs.text}{in_precision(self.precision)}"


@dataclass(frozen=True)
class Validation:
    """A whole network that was measured on the device, beside what the table says of it.

    Attributes
    ----------
    inputs : what the network takes.
    plan : what its width plan is called.
    widths : the width of each channel group.
    precision : what the network computes in.
    floats : the layers of a network of mixed precisions that are in floating point.
    """

    model: str
    inputs: Inputs
    plan: str
    widths: Mapping[str, int]
    predicted_us: float
    measured_us: float
    precision: NetworkPrecision = FP32
    floats: tuple[str, ...] = ()

    @property
    def network(self) -> NetworkName:
        """The network that this is a plan of."""
        return NetworkName(self.model, self.inputs, self.precision)


class MissingKernelError(UserError):
    """The table has no latency for a kernel that a network needs."""


@dataclass
class LatencyTable:
    """Latencies of one device.

    Attributes
    ----------
    device : what the latencies depend on, with provenance and date.
    measurement : how they were measured.
    points : latencies of each kernel by its widths, those of its address.
    validation : whole networks that were measured, calibrating ones included.
    slowdowns : how much longer a network takes than the sum of its kernels.
    """

    device: dict[str, Any]
    measurement: dict[str, Any]
    points: dict[KernelKey, dict[tuple[int, ...], LatencyPoint]] = field(default_factory=dict)
    validation: list[Validation] = field(default_factory=list)
    slowdowns: dict[NetworkName, Slowdown] = field(default_factory=dict)

    @property
    def is_outdated(self) -> bool:
        """Whether its kernels are other code than what is compiled under their keys today."""
        return bool(self.device["schedules"] != SCHEDULES)

    @property
    def is_estimated(self) -> bool:
        """Whether its latencies were worked out from the compiled code, and nothing ran."""
        return bool(self.device["provenance"] == ESTIMATED)

    @property
    def networks(self) -> list[NetworkName]:
        """The networks that it is of: those that were measured as a whole, or that were estimated."""
        return list(dict.fromkeys([*(entry.network for entry in self.validation), *self.slowdowns]))

    def add(self, key: KernelKey, point: LatencyPoint) -> None:
        """Add a point; one already there at the same widths is replaced."""
        self.points.setdefault(key, {})[point.widths] = point

    def __len__(self) -> int:
        return sum(map(len, self.points.values()))

    def __contains__(self, address: Address) -> bool:
        return self.point(address) is not None

    def point(self, address: Address) -> LatencyPoint | None:
        """What was measured at exactly this address, if anything was."""
        return self.points.get(address.key, {}).get(address.widths)

    def covers(self, address: Address) -> bool:
        """Whether there is a latency for an address, measured there or between others."""
        measured = {widths: point.latency_us for widths, point in self.points.get(address.key, {}).items()}
        return bool(measured) and _interpolate(measured, address.widths) is not None

    def latency(self, address: Address, precision: NetworkPrecision | None = None) -> Latency:
        """Latency of a kernel on its own, interpolated between measured widths where need be.

        Below the smallest measured width the latency of the smallest is given. ``precision`` is that of the network
        that the kernel is of, which may have kernels in others; None if nothing is known of it.

        Raises
        ------
        MissingKernelError : the kernel was not measured, or only at smaller widths.
        """
        key, measured = address.key, self.points.get(address.key)
        command = self._command(key, precision)
        if not measured:
            raise MissingKernelError(
                f"the latency table of {self.device['name']} has no kernel '{key}'; "
                f"measure it with {command} and this model and input size"
            )
        if (point := measured.get(address.widths)) is not None:
            return Latency(point.latency_us, interpolated=False)
        value = _interpolate({widths: p.latency_us for widths, p in measured.items()}, address.widths)
        if value is None:
            raise MissingKernelError(
                f"the latency table of {self.device['name']} has the kernel '{key}' only up to other widths than "
                f"{' -> '.join(map(str, address.widths))}; measure it with {command} and this model"
            )
        return Latency(value, interpolated=True)

    def slowdown(self, model: str, inputs: Inputs, precision: NetworkPrecision = FP32) -> Slowdown:
        """How much longer a network takes than the sum of its kernels; `ALONE`, no longer, if that is not known."""
        return self.slowdowns.get(NetworkName(model, inputs, precision), ALONE)

    def dense_ms(self, model: str, inputs: Inputs, precision: NetworkPrecision = FP32) -> float | None:
        """Measured latency of a whole unpruned network, in milliseconds, if the table holds it.

        Of a mixture it is the one in its more exact precision, which may have been measured by itself, too.
        """
        found = {entry.network: entry.measured_us for entry in reversed(self.validation) if entry.plan == "dense"}
        for each in (unpruned_in(precision), precision):
            if (us := found.get(NetworkName(model, inputs, each))) is not None:
                return us / 1e3
        return None

    def _command(self, key: KernelKey, precision: NetworkPrecision | None) -> str:
        """The command that measures networks with kernels as this one."""
        if (key.types.is_quantized and key.types.is_half) or precision == INT8_HALF:  # which only plans lead to
            precision = MIXED_HALF
        precision = precision or (INT8 if key.types.is_quantized else HALF if key.types.is_half else FP32)
        option = "" if precision == FP32 else f" --precision {precision}"
        option += " --estimate" if self.is_estimated else ""
        return f"'aap-hw profile --device {shlex.quote(self.device['name'])} --model NAME{option}'"


Latencies = Mapping[tuple[int, ...], float]


def _interpolate(measured: Latencies, widths: Sequence[int]) -> float | None:
    """Value at some widths, or None where the measured points do not surround them.

    Of an input and an output width: linear along the input width within each of the two nearest output widths that
    reach as far, and linear between these two. Along an output width that was measured itself, the other direction does
    not matter. What lies below all that was measured is answered by the smallest. More widths follow in the same way.

    Kernels whose widths follow from the first, as a depthwise convolution's do, lie on a line instead.
    """
    if all(len(set(axis)) == len(measured) for axis in zip(*measured, strict=True)):
        return _along_line({first: (others, us) for (first, *others), us in measured.items()}, *widths)
    *first, last = widths
    slices: dict[int, dict[tuple[int, ...], float]] = defaultdict(dict)
    for (*others, out), us in measured.items():
        slices[out][tuple(others)] = us
    outs = sorted(slices)
    above = _first_reached(slices, [out for out in outs if out >= last], first)
    if above is None:
        return None
    below = _first_reached(slices, [out for out in reversed(outs) if out <= last], first) or above
    return _linear(*below, *above, last)


def _first_reached(
    slices: Mapping[int, Latencies], outs: Iterable[int], widths: Sequence[int]
) -> tuple[int, float] | None:
    """The first of some output widths whose points surround the other widths, with the value there."""
    return next(((out, value) for out in outs if (value := _interpolate(slices[out], widths)) is not None), None)


def _along_line(points: Mapping[int, tuple[Sequence[int], float]], x: int, *others: int) -> float | None:
    """Value at x, if the other widths are those that the line has there."""
    if (around := _around(points, x)) is None:
        return None
    a, b = around
    (others_a, us_a), (others_b, us_b) = points[a], points[b]
    for at_a, at_b, y in zip(others_a, others_b, others, strict=True):
        if y > at_a if x < a else abs(_linear(a, at_a, b, at_b, x) - y) > 0.5:
            return None
    return _linear(a, us_a, b, us_b, x)


def _around(widths: Collection[int], x: int) -> tuple[int, int] | None:
    """The nearest widths below and above x, or x itself twice; the smallest twice below all; None above all."""
    at_least = min((w for w in widths if w >= x), default=None)
    if at_least is None:
        return None
    return max((w for w in widths if w <= x), default=at_least), at_least


def _linear(a: int, at_a: float, b: int, at_b: float, x: int) -> float:
    if x <= a or a == b:
        return at_a
    return at_a + (at_b - at_a) * (x - a) / (b - a)
