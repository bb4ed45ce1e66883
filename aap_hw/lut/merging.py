"""Several tables of one device into one. Pure: tables in, a table out, with what they disagree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.errors import UserError
from aap_hw.lut.comparing import INCIDENTAL
from aap_hw.lut.table import LatencyPoint, LatencyTable

# Two timings of one point that differ by more than this share are worth a word.
TOLERANCE = 0.05
# What may differ between two ways of measuring: it is of the day, not of the way.
OF_THE_DAY = ("reference_us", "reference_drift", "governor", "temperature_c", "boards")


@dataclass(frozen=True)
class Conflict:
    """A point of which two tables say something else: the quicker one is kept, by the name of its table."""

    address: Address
    kept_us: float
    other_us: float
    kept: str


@dataclass(frozen=True)
class Merged:
    """The table, the points that its sources disagree on, and the networks that more than one of them had measured."""

    table: LatencyTable
    conflicts: tuple[Conflict, ...]
    networks: tuple[str, ...]


def merge(named: Sequence[tuple[str, LatencyTable]]) -> Merged:
    """Merge tables, each given with the name that sentences call it by.

    Latencies are brought to the speed of the first table by the reference kernel that was timed beside each. Estimates
    have no such kernel: they stay as they are, and are never merged with measurements. If several tables have a point,
    the quickest counts, as among the visits of one profile. If several measured a network as a whole, all of it is
    taken from the first of them, as its calibration belongs to its measurements. Its stored predictions stay those of
    its own table, and so does its calibration, though points may be quicker now: ``profile``, which has the network,
    fits it anew without measuring anything, and makes the predictions anew as ``lut validate`` does.

    Raises
    ------
    UserError : there are fewer than two tables, or they are not of one device, compiled and measured in one way.
    """
    if len(named) < 2:
        raise UserError("merging takes two tables or more; give their files and --out FILE")
    (first_name, first), *others = named
    result = LatencyTable(dict(first.device), dict(first.measurement))
    for name, other in others:
        _require_same(first_name, first, name, other)
    conflicts: dict[Address, Conflict] = {}
    networks: dict[str, None] = {}
    origin: dict[Address, str] = {}
    for name, table in named:
        scale = _speed(first) / _speed(table)
        for key, points in table.points.items():
            for point in points.values():
                scaled = replace(point, latency_us=point.latency_us * scale, spread_us=point.spread_us * scale)
                _add(result, key, scaled, name, origin, conflicts)
        taken = {entry.network for entry in result.validation} | set(result.slowdowns)
        for network in dict.fromkeys([*(v.network for v in table.validation), *table.slowdowns]):
            if network in taken:
                networks[f"{network.text}, of {name}"] = None
                continue
            result.validation += [
                replace(v, predicted_us=v.predicted_us * scale, measured_us=v.measured_us * scale)
                for v in table.validation
                if v.network == network
            ]
            if (slow := table.slowdowns.get(network)) is not None:
                result.slowdowns[network] = replace(
                    slow, alone_us=slow.alone_us * scale, measured_us=slow.measured_us * scale
                )
    result.device["date"] = max(table.device["date"] for _, table in named)
    drifts = [table.measurement["reference_drift"] for _, table in named if "reference_drift" in table.measurement]
    if drifts:
        result.measurement["reference_drift"] = max(drifts)
    boards = [table.measurement.get("boards", {}) for _, table in named]
    if any(boards):
        # Of a board that several name, the first says how fast it is.
        result.measurement["boards"] = {name: facts for some in reversed(boards) for name, facts in some.items()}
    return Merged(result, tuple(conflicts.values()), tuple(networks))


def _speed(table: LatencyTable) -> float:
    """Latency of the reference kernel (µs); an estimate has none, and is of one speed."""
    return float(table.measurement.get("reference_us", 1.0))


def _add(
    table: LatencyTable,
    key: KernelKey,
    point: LatencyPoint,
    name: str,
    origin: dict[Address, str],
    conflicts: dict[Address, Conflict],
) -> None:
    address = Address(key, point.widths)
    before = table.point(address)
    if before is not None:
        quick, slow = sorted((before, point), key=lambda p: p.latency_us)
        if quick.latency_us * (1 + TOLERANCE) < slow.latency_us:
            kept = name if quick is point else origin[address]
            conflicts[address] = Conflict(address, quick.latency_us, slow.latency_us, kept)
        if quick is before:
            return
    table.add(key, point)
    origin[address] = name


def _require_same(first_name: str, first: LatencyTable, name: str, other: LatencyTable) -> None:
    ours, theirs = first.device["provenance"], other.device["provenance"]
    if ours != theirs:
        raise UserError(
            f"the latencies of {name} are {theirs} and those of {first_name} are {ours}: a table never mixes the two; "
            "merge only tables of one kind"
        )
    for kind, ours, theirs, ignored in (
        ("device", first.device, other.device, INCIDENTAL),
        ("measurement", first.measurement, other.measurement, OF_THE_DAY),
    ):
        for fact in sorted((ours.keys() | theirs.keys()) - set(ignored)):
            if ours.get(fact) != theirs.get(fact):
                raise UserError(
                    f"{name} and {first_name} are not of one {kind}: {fact} is {theirs.get(fact)!r} and "
                    f"{ours.get(fact)!r}; only tables of one device, compiled and measured in one way, can be merged"
                )
