"""How far off estimated latencies are, where measured ones tell: on x86, for networks that were not learned from.

The same method that estimates kernels of boards (`aap_hw.estimate`) estimates those of measured tables. Its correction
is learned from all kernels of a table but those of one network, and that network's plans, which the table holds as they
were measured from end to end, are estimated with it. Then the next network is left out. Networks of `--other` tables
are estimated with what was learned from the first, without the kernels that they have in common: how well does it carry
over to another CPU, another precision, another day? Nothing is timed here.

    python benchmarks/estimate_error.py --json -
    python benchmarks/estimate_error.py --other docs/results/accuracy_latency/long/x86.json --json -
    python benchmarks/estimate_error.py --write                                     # keep what was learned
"""

from __future__ import annotations

import argparse
import functools
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from aap_hw.compile.front.mixed import MixedNetwork
    from aap_hw.compile.front.network import Network
    from aap_hw.compile.keys.address import Address
    from aap_hw.compile.keys.key import KernelKey
    from aap_hw.compile.keys.target import DeviceTarget
    from aap_hw.device.profile import BoardSpec
    from aap_hw.estimate.correction import Correction
    from aap_hw.estimate.terms import Terms
    from aap_hw.graph import ChannelGraph
    from aap_hw.lut.table import LatencyTable, NetworkName

ROOT = Path(__file__).resolve().parent.parent
TABLE = "lut/x86.json"
QUICK, QUICK_POINTS = "resnet20", 40
"""With --quick: the one network that is left out, and points of other kernels to learn from."""


def boards() -> dict[str, BoardSpec]:
    """Machines whose tables are measured, by the name of their core: one core of a server, as its owner sees it.

    The clock of the Zen 5 follows from a chain of multiplications; that of the Zen 4 is what AMD's EPYC 9004 boost to.
    Its dense kernels come to 99 % of the peak then. Caches are AMD's figures; that memory feeds one core with 60 GB/s
    is a guess, which few kernels of these tables depend on.
    """
    from aap_hw.device.profile import BoardSpec

    common = {"l2_kib": 1024, "l3_kib": 32768, "memory_gb_s": 60.0}
    return {
        "znver4": BoardSpec(clock_ghz=3.7, l1_kib=32, **common),
        "znver5": BoardSpec(clock_ghz=4.2, l1_kib=48, **common),
    }


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from _report import print_report, say

    options = _options()
    say(f"{options.table}: counting what its kernels do")
    source = Measured.read(Path(options.table), quick=options.quick)
    rows = _rows(source, source)
    summary = summary_of(rows) if rows else {}
    if options.write:
        error = {
            "machine": source.table.device["cpu"],
            "networks": sorted(row["network"] for row in rows),
            "plans": sum(row["plans"] for row in rows),
            "mean_pct": round(summary["mape_pct"], 1),
            "worst_pct": round(summary["max_error_pct"], 1),
            "kendall_tau": round(summary["kendall_tau"], 3),
        }
        learned = _learned(source, ())
        assert learned is not None
        replace(learned, error=error).save()
    elsewhere = []
    for path in options.other:
        say(f"{path}: counting what its kernels do")
        elsewhere += _rows(source, Measured.read(Path(path), options.models.split(",") if options.models else None))
    for name, is_same in (("other_cpu", False), ("other_table", True)):
        if some := [row for row in elsewhere if (row["cpu"] == row["learned_on"]) is is_same]:
            summary |= {f"{name}_{figure}": value for figure, value in summary_of(some).items()}
    rows += elsewhere
    print_report(rows, summary, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", default=str(ROOT / TABLE), help="measured table to learn from")
    parser.add_argument("--other", action="append", default=[], help="measured table to hold against what was learned")
    parser.add_argument("--models", help="networks of the other tables, separated by commas; all unless given")
    parser.add_argument("--write", action="store_true", help="keep the correction for estimates")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="few kernels: does it run?")
    options = parser.parse_args()
    if options.quick and options.write:
        parser.error("--quick learns from too few kernels to --write")
    return options


@dataclass(frozen=True)
class Measured:
    """A measured table with the terms of its kernels, and the networks that it holds plans of."""

    table: LatencyTable
    measured_us: dict[Address, float]
    terms: dict[Address, Terms]
    networks: dict[NetworkName, Traced]

    @classmethod
    def read(cls, path: Path, models: Collection[str] | None = None, *, quick: bool = False) -> Measured:
        """Read a table, and count; only what some models need, if they are given."""
        from aap_hw.compile.keys.address import Address
        from aap_hw.compile.keys.target import device_target
        from aap_hw.estimate.cores import CORES
        from aap_hw.estimate.terms import Machine
        from aap_hw.lut.file import load_table

        table = load_table(path)
        target = device_target(table.device["target"], table.device["threads"])
        cpu = table.device["target"]["mcpu"]
        machine = Machine(CORES[cpu], boards()[cpu], table.measurement["copies"])
        wanted = [QUICK] if quick else models
        planned = {entry.network for entry in table.validation}
        names = [name for name in table.slowdowns if name in planned and (wanted is None or name.model in wanted)]
        networks = {name: Traced.of(name, target) for name in names}
        us = {Address(key, widths): p.latency_us for key, each in table.points.items() for widths, p in each.items()}
        points = list(us)
        if wanted is not None:
            keys = {key for network in networks.values() for key in network.keys}
            others = [point for point in points if point.key not in keys]
            points = [point for point in points if point.key in keys]
            points += others[:: len(others) // QUICK_POINTS] if quick else []
        return cls(table, us, {point: machine.terms(point, target) for point in points}, networks)


@dataclass(frozen=True)
class Traced:
    """A network in the precision of its name, with any layers in float32 if that is a mixture."""

    graph: ChannelGraph
    name: NetworkName
    half: str

    @classmethod
    def of(cls, name: NetworkName, target: DeviceTarget) -> Traced:
        """The network of a name, for a target."""
        from aap_hw.compile.keys.target import half_of
        from aap_hw.graph import ChannelGraph
        from aap_hw.models import zoo

        graph = ChannelGraph.trace(zoo.build(name.model).module, name.inputs.zeros(), name.inputs.names)
        return cls(graph, name, half_of(name.precision, target))

    def network(self, floats: Sequence[str]) -> Network:
        """The kernels, with some layers in float32."""
        from aap_hw.compile.front.partition import partition

        return (
            partition(self.graph, self.name.precision, half=self.half)
            if self._mixed is None
            else self._mixed.network(floats)
        )

    @functools.cached_property
    def keys(self) -> frozenset[KernelKey]:
        """The kernels of all mixtures."""
        everything = self.network(()) if self._mixed is None else self._mixed.everything
        return frozenset(kernel.key for kernel in everything.kernels)

    @functools.cached_property
    def _mixed(self) -> MixedNetwork | None:
        from aap_hw.compile.front.domains import mixed_network
        from aap_hw.compile.keys.precision import MIXED

        return mixed_network(self.graph) if self.name.precision == MIXED else None


def _learned(source: Measured, without: Collection[KernelKey]) -> Correction | None:
    """A correction from the kernels and networks of a table, but for some kernels and whatever network has them.

    None if no kernel is left.
    """
    from aap_hw.estimate.correction import Correction, fitted_shares

    kept = [point for point in source.terms if point.key not in without]
    if not kept:
        return None
    factors = [
        measured / alone
        for network in source.networks.values()
        if network.keys.isdisjoint(without)
        for measured, alone in _plans(source, network, source.table)
    ]
    shares = fitted_shares([source.terms[point] for point in kept], [source.measured_us[point] for point in kept])
    return Correction(shares, math.exp(float(np.mean(np.log(factors)))) if factors else 1.0, {})


def _plans(source: Measured, traced: Traced, table: LatencyTable) -> list[tuple[float, float]]:
    """Of each plan of a network, what it took, and what its kernels take by a table."""
    from aap_hw.lut.predicting import predict_us

    return [
        (entry.measured_us, predict_us(traced.network(entry.floats), entry.widths, table))
        for entry in source.table.validation
        if entry.network == traced.name
    ]


def _rows(source: Measured, held: Measured) -> list[dict[str, Any]]:
    """One of each network of a table: how far off it is by what was learned from another, without its kernels."""
    from _report import say

    from aap_hw.lut.fidelity import kendall_tau
    from aap_hw.lut.table import LatencyPoint

    rows = []
    for name, traced in held.networks.items():
        if (learned := _learned(source, traced.keys)) is None:
            say(f"{name.text}: nothing else was measured than its own kernels, so that there is nothing to learn from")
            continue
        table = replace(held.table, points={})
        kernels = []
        for point, terms in held.terms.items():
            us = learned.shares.latency_us(terms)
            table.add(point.key, LatencyPoint(point.widths, us, 0.0, 0))
            if point.key in traced.keys:
                kernels.append(us / held.measured_us[point] - 1)
        measured, estimated = np.array(_plans(held, traced, table)).T
        off = 100 * (estimated * learned.network_factor / measured - 1)
        rows.append(
            {
                "network": name.text,
                "cpu": held.table.device["cpu"],
                "learned_on": source.table.device["cpu"],
                "plans": len(off),
                "mape_pct": float(np.abs(off).mean()),
                "max_error_pct": float(np.abs(off).max()),
                "bias_pct": float(off.mean()),
                "kendall_tau": kendall_tau(measured, estimated),
                "kernels_mape_pct": 100 * float(np.mean(np.abs(kernels))),
            }
        )
    return rows


def summary_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over networks, the worst plan, and the network that is ordered worst; which networks were left out."""
    return {
        "mape_pct": float(np.mean([row["mape_pct"] for row in rows])),
        "max_error_pct": max(row["max_error_pct"] for row in rows),
        "kendall_tau": float(np.mean([row["kendall_tau"] for row in rows])),
        "lowest_kendall_tau": min(row["kendall_tau"] for row in rows),
        "held_out": ", ".join(row["network"] for row in rows),
    }


if __name__ == "__main__":
    main()
