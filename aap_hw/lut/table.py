"""The latency table: measured latencies of kernels by their widths, for one device.

Holds and looks up; measuring is ``aap_hw.lut.profiling``, and the file's form is ``aap_hw.lut.file``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from aap_hw.compile.keys.key import SCHEDULES, KernelKey
from aap_hw.errors import UserError
from aap_hw.lut.calibrating import ALONE, Slowdown


@dataclass(frozen=True)
class LatencyPoint:
    """One measured latency.

    Attributes
    ----------
    latency_us, spread_us : latency of a call and how well the samples behind it agree, in microseconds; see
        ``aap_hw.device.timing``.
    samples : how many samples there were.
    """

    width_in: int
    width_out: int
    latency_us: float
    spread_us: float
    samples: int


@dataclass(frozen=True)
class Latency:
    """A looked-up latency, and whether it was measured at exactly these widths."""

    us: float
    interpolated: bool


@dataclass(frozen=True)
class Validation:
    """A whole network that was measured on the device, beside what the table says of it.

    Attributes
    ----------
    input : shape of the images, (N, C, H, W).
    plan : what its width plan is called.
    widths : the width of each channel group.
    """

    model: str
    input: tuple[int, ...]
    plan: str
    widths: Mapping[str, int]
    predicted_us: float
    measured_us: float


class MissingKernelError(UserError):
    """The table has no latency for a kernel that a network needs."""


@dataclass
class LatencyTable:
    """Latencies of one device.

    Attributes
    ----------
    device : what the latencies depend on, with provenance and date.
    measurement : how they were measured.
    slowdowns : by model and input shape, how much longer a network takes than the sum of its kernels.
    """

    device: dict[str, Any]
    measurement: dict[str, Any]
    points: dict[KernelKey, dict[tuple[int, int], LatencyPoint]] = field(default_factory=dict)
    validation: list[Validation] = field(default_factory=list)
    slowdowns: dict[tuple[str, tuple[int, ...]], Slowdown] = field(default_factory=dict)

    @property
    def is_outdated(self) -> bool:
        """Whether its kernels are other code than what is compiled under their keys today."""
        return bool(self.device["schedules"] != SCHEDULES)

    def add(self, key: KernelKey, point: LatencyPoint) -> None:
        """Add a point; one already there at the same widths is replaced."""
        self.points.setdefault(key, {})[(point.width_in, point.width_out)] = point

    def __len__(self) -> int:
        return sum(map(len, self.points.values()))

    def __contains__(self, address: tuple[KernelKey, int, int]) -> bool:
        key, width_in, width_out = address
        return (width_in, width_out) in self.points.get(key, {})

    def latency(self, key: KernelKey, width_in: int, width_out: int) -> Latency:
        """Latency of a kernel on its own at the given widths, interpolated between measured ones where need be.

        Below the smallest measured width the latency of the smallest is given.

        Raises
        ------
        MissingKernelError : the kernel was not measured, or only at smaller widths.
        """
        measured = self.points.get(key)
        if not measured:
            raise MissingKernelError(
                f"the latency table of {self.device['name']} has no kernel '{key}'; "
                f"measure it with 'aap-hw profile --device {self.device['name']}' and this model and input size"
            )
        if (point := measured.get((width_in, width_out))) is not None:
            return Latency(point.latency_us, interpolated=False)
        value = _interpolate({widths: p.latency_us for widths, p in measured.items()}, width_in, width_out)
        if value is None:
            raise MissingKernelError(
                f"the latency table of {self.device['name']} has the kernel '{key}' only up to other widths than "
                f"{width_in} -> {width_out}; measure it with 'aap-hw profile --device {self.device['name']}' and "
                "this model"
            )
        return Latency(value, interpolated=True)

    def slowdown(self, model: str, input_shape: tuple[int, ...]) -> Slowdown:
        """How much longer a network takes than the sum of its kernels; as long as the sum if that is not known."""
        return self.slowdowns.get((model, input_shape), ALONE)

    def dense_ms(self, model: str, input_shape: tuple[int, ...]) -> float | None:
        """Measured latency of a whole unpruned network, in milliseconds, if the table holds it."""
        for entry in self.validation:
            if (entry.model, entry.input, entry.plan) == (model, input_shape, "dense"):
                return entry.measured_us / 1e3
        return None


Latencies = Mapping[tuple[int, int], float]


def _interpolate(measured: Latencies, x: int, y: int) -> float | None:
    """Value at (x, y), or None where the measured points do not surround it.

    Linear along the input width within each of the two nearest output widths that reach as far as x, and linear
    between these two. Along an output width that was measured itself, the other direction does not matter. What lies
    below all that was measured is answered by the smallest.

    Kernels with one width, such as depthwise convolutions, lie on a line instead.
    """
    columns: dict[int, dict[int, float]] = defaultdict(dict)
    for (width_in, width_out), us in measured.items():
        columns[width_out][width_in] = us
    if len(columns) == len({width_in for width_in, _ in measured}) == len(measured):
        return _along_line({x: (y, us) for (x, y), us in measured.items()}, x, y)
    reached = {out: value for out, column in columns.items() if (value := _along_column(column, x)) is not None}
    if (around := _around(reached, y)) is None:
        return None
    c, d = around
    return _linear(c, reached[c], d, reached[d], y)


def _along_column(column: Mapping[int, float], x: int) -> float | None:
    if (around := _around(column, x)) is None:
        return None
    a, b = around
    return _linear(a, column[a], b, column[b], x)


def _along_line(points: Mapping[int, tuple[int, float]], x: int, y: int) -> float | None:
    if (around := _around(points, x)) is None:
        return None
    a, b = around
    (out_a, us_a), (out_b, us_b) = points[a], points[b]
    if y > out_a if x < a else abs(_linear(a, out_a, b, out_b, x) - y) > 0.5:
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
