"""The latency table: measured latencies of kernels by their widths, for one device.

Holds and looks up; measuring is ``aap_hw.lut.profiling``, and the file's form is ``aap_hw.lut.file``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aap_hw.compile.kernel import KernelKey
from aap_hw.errors import UserError


@dataclass(frozen=True)
class LatencyPoint:
    """One measured latency.

    Attributes
    ----------
    median_us, spread_us : median and interquartile range of the samples, in microseconds a call.
    samples : how many samples there were.
    """

    width_in: int
    width_out: int
    median_us: float
    spread_us: float
    samples: int


@dataclass(frozen=True)
class Latency:
    """A looked-up latency, and whether it was measured at exactly these widths."""

    us: float
    interpolated: bool


@dataclass(frozen=True)
class Validation:
    """A whole network that was measured on the device, beside what the table says of it."""

    model: str
    input: tuple[int, ...]
    plan: str
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
    """

    device: dict[str, Any]
    measurement: dict[str, Any]
    points: dict[KernelKey, dict[tuple[int, int], LatencyPoint]] = field(default_factory=dict)
    validation: list[Validation] = field(default_factory=list)

    def add(self, key: KernelKey, point: LatencyPoint) -> None:
        """Add a point; one already there at the same widths is replaced."""
        self.points.setdefault(key, {})[(point.width_in, point.width_out)] = point

    def __len__(self) -> int:
        return sum(map(len, self.points.values()))

    def __contains__(self, address: tuple[KernelKey, int, int]) -> bool:
        key, width_in, width_out = address
        return (width_in, width_out) in self.points.get(key, {})

    def latency(self, key: KernelKey, width_in: int, width_out: int) -> Latency:
        """Latency of a kernel at the given widths, interpolated between measured ones where need be.

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
            return Latency(point.median_us, interpolated=False)
        value = _interpolate({widths: p.median_us for widths, p in measured.items()}, width_in, width_out)
        if value is None:
            raise MissingKernelError(
                f"the latency table of {self.device['name']} has the kernel '{key}' only up to other widths than "
                f"{width_in} -> {width_out}; measure it with 'aap-hw profile --device {self.device['name']}' and "
                "this model"
            )
        return Latency(value, interpolated=True)

    def dense_ms(self, model: str, input_shape: tuple[int, ...]) -> float | None:
        """Measured latency of a whole unpruned network, in milliseconds, if the table holds it."""
        for entry in self.validation:
            if (entry.model, entry.input, entry.plan) == (model, input_shape, "dense"):
                return entry.measured_us / 1e3
        return None


Latencies = Mapping[tuple[int, int], float]


def _interpolate(measured: Latencies, x: int, y: int) -> float | None:
    """Value at (x, y) from the smallest measured rectangle around it; None if there is none.

    Where the point lies below all that was measured, the rectangle begins above it and its edge is the answer.

    Kernels with one width, such as depthwise convolutions, lie on a line instead.
    """
    by_in: dict[int, dict[int, float]] = defaultdict(dict)
    for (width_in, width_out), us in measured.items():
        by_in[width_in][width_out] = us
    if all(len(row) == 1 for row in by_in.values()):
        return _along_line({a: next(iter(row.items())) for a, row in by_in.items()}, x, y)
    best: tuple[tuple[int, int], float] | None = None
    for (a, b), row, other in _column_pairs(by_in, x):
        for c, d in _spans(sorted(row.keys() & other.keys()), y):
            rank = (x < a) + (y < c), (b - a + 1) * (d - c + 1)
            if best is None or rank < best[0]:
                low = _linear(c, row[c], d, row[d], y)
                high = _linear(c, other[c], d, other[d], y)
                best = rank, _linear(a, low, b, high, x)
    return None if best is None else best[1]


def _column_pairs(
    by_in: Mapping[int, dict[int, float]], x: int
) -> Iterator[tuple[tuple[int, int], dict[int, float], dict[int, float]]]:
    widths = sorted(by_in)
    for a in [w for w in widths if w <= x] or widths[:1]:
        for b in [w for w in widths if w >= x]:
            yield (a, b), by_in[a], by_in[b]


def _spans(widths: list[int], y: int) -> Iterator[tuple[int, int]]:
    for c in [w for w in widths if w <= y] or widths[:1]:
        for d in [w for w in widths if w >= y]:
            yield c, d


def _along_line(points: Mapping[int, tuple[int, float]], x: int, y: int) -> float | None:
    widths = sorted(points)
    above = [w for w in widths if w >= x]
    if not above:
        return None
    b = above[0]
    a = max((w for w in widths if w <= x), default=b)
    (out_a, us_a), (out_b, us_b) = points[a], points[b]
    if y > out_a if x < a else abs(_linear(a, out_a, b, out_b, x) - y) > 0.5:
        return None
    return _linear(a, us_a, b, us_b, x)


def _linear(a: int, at_a: float, b: int, at_b: float, x: int) -> float:
    if x <= a or a == b:
        return at_a
    return at_a + (at_b - at_a) * (x - a) / (b - a)
