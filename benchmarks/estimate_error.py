"""How far off estimated latencies are, where measured ones tell: on x86, for networks that were not learned from.

The same method that estimates kernels of boards (`aap_hw.estimate`) estimates those of measured tables. Its correction
is learned from all kernels but those of one network, and that network's plans, which the table holds as they were
measured from end to end, are estimated with it. Then the next network is left out. `other_cpu` learns from all kernels
of the other tables instead, which are of other CPUs. Nothing is timed here.

    python benchmarks/estimate_error.py --json -
    python benchmarks/estimate_error.py --tables lut/x86.json,another.json --write     # keep what was learned
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from aap_hw.compile.front.network import Network
    from aap_hw.compile.keys.address import Address
    from aap_hw.compile.keys.key import KernelKey
    from aap_hw.device.profile import BoardSpec
    from aap_hw.estimate.correction import Correction
    from aap_hw.estimate.terms import Terms
    from aap_hw.lut.table import LatencyTable, NetworkName

ROOT = Path(__file__).resolve().parent.parent
TABLES = "lut/x86.json"
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
    measured = []
    for path in options.tables.split(","):
        say(f"{path}: counting what its kernels do")
        measured.append(Measured.read(Path(path), options.quick))
    rows = [row for each in measured for row in _rows(each, measured)]
    summary = summary_of(rows)
    if options.write:
        machines = " and ".join(each.table.device["cpu"] for each in measured)
        error = {
            "machine": machines,
            "networks": sorted({row["network"] for row in rows}),
            "plans": sum(row["plans"] for row in rows),
            "mean_pct": round(summary["mape_pct"], 1),
            "worst_pct": round(summary["max_error_pct"], 1),
            "kendall_tau": round(summary["kendall_tau"], 3),
        }
        replace(_learned(measured, ()), error=error).save()
    print_report(rows, summary, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", default=str(ROOT / TABLES), help="measured tables, separated by commas")
    parser.add_argument("--write", action="store_true", help="keep the correction for estimates")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="few kernels: does it run?")
    return parser.parse_args()


@dataclass(frozen=True)
class Measured:
    """A measured table with the terms of its kernels, and the networks that it holds plans of."""

    table: LatencyTable
    measured_us: dict[Address, float]
    terms: dict[Address, Terms]
    networks: dict[NetworkName, Network]

    @classmethod
    def read(cls, path: Path, quick: bool) -> Measured:
        """Read a table, and count."""
        from aap_hw.compile.keys.address import Address
        from aap_hw.compile.keys.target import device_target
        from aap_hw.estimate.cores import CORES
        from aap_hw.estimate.terms import Machine
        from aap_hw.lut.file import load_table

        table = load_table(path)
        target = device_target(table.device["target"], table.device["threads"])
        cpu = table.device["target"]["mcpu"]
        machine = Machine(CORES[cpu], boards()[cpu], table.measurement["copies"])
        networks = {name: _network(name, target) for name in table.slowdowns if not quick or name.model == QUICK}
        points = [Address(key, widths) for key, each in table.points.items() for widths in each]
        if quick:
            wanted = {kernel.key for network in networks.values() for kernel in network.kernels}
            others = [point for point in points if point.key not in wanted]
            points = [point for point in points if point.key in wanted] + others[:: len(others) // QUICK_POINTS]
        us = {Address(key, widths): p.latency_us for key, each in table.points.items() for widths, p in each.items()}
        return cls(table, us, {point: machine.terms(point, target) for point in points}, networks)

    def keys_of(self, name: NetworkName) -> set[KernelKey]:
        """The kernels of a network."""
        return {kernel.key for kernel in self.networks[name].kernels}


def _network(name: NetworkName, target: Any) -> Network:
    from aap_hw.compile.front.partition import partition
    from aap_hw.compile.keys.target import half_of
    from aap_hw.graph import ChannelGraph
    from aap_hw.models import zoo

    graph = ChannelGraph.trace(zoo.build(name.model).module, name.inputs.zeros(), name.inputs.names)
    return partition(graph, name.precision, half=half_of(name.precision, target))


def _learned(sources: Sequence[Measured], without: Collection[KernelKey]) -> Correction:
    """A correction from the kernels and networks of tables, but for some kernels and whatever network has them."""
    from aap_hw.estimate.correction import Correction, fitted_shares

    terms, us, factors = [], [], []
    for source in sources:
        for point, values in source.terms.items():
            if point.key not in without:
                terms.append(values)
                us.append(source.measured_us[point])
        for name, network in source.networks.items():
            if not source.keys_of(name) & set(without) or not without:
                factors += [measured / alone for measured, alone in _plans(source, name, network, source.table)]
    factor = math.exp(float(np.mean(np.log(factors)))) if factors else 1.0
    return Correction(fitted_shares(terms, us), factor, {})


def _plans(source: Measured, name: NetworkName, network: Network, table: LatencyTable) -> list[tuple[float, float]]:
    """Of each plan of a network, what it took, and what its kernels take by a table."""
    from aap_hw.lut.predicting import predict_us

    return [
        (entry.measured_us, predict_us(network, entry.widths, table))
        for entry in source.table.validation
        if entry.network == name
    ]


def _rows(each: Measured, everything: Sequence[Measured]) -> list[dict[str, Any]]:
    """One of each network of a table: how far off it is when it was left out."""
    rows = []
    for name, network in each.networks.items():
        learned = _learned(everything, each.keys_of(name))
        row = {"network": name.text, "cpu": each.table.device["cpu"], **_errors(each, name, network, learned)}
        others = [other for other in everything if other.table.device["cpu"] != each.table.device["cpu"]]
        if others:
            errors = _errors(each, name, network, _learned(others, each.keys_of(name)))
            row |= {f"other_cpu_{key}": value for key, value in errors.items() if key != "plans"}
        rows.append(row)
    return rows


def _errors(source: Measured, name: NetworkName, network: Network, learned: Correction) -> dict[str, Any]:
    from aap_hw.lut.fidelity import kendall_tau
    from aap_hw.lut.table import LatencyPoint

    table = replace(source.table, points={})
    for point, terms in source.terms.items():
        table.add(point.key, LatencyPoint(point.widths, learned.shares.latency_us(terms), 0.0, 0))
    pairs = _plans(source, name, network, table)
    measured, estimated = np.array(pairs).T
    off = 100 * (estimated * learned.network_factor / measured - 1)
    keys = source.keys_of(name)
    kernels = [
        learned.shares.latency_us(terms) / source.measured_us[point] - 1
        for point, terms in source.terms.items()
        if point.key in keys
    ]
    return {
        "plans": len(pairs),
        "mape_pct": float(np.abs(off).mean()),
        "max_error_pct": float(np.abs(off).max()),
        "bias_pct": float(off.mean()),
        "kendall_tau": kendall_tau(measured, estimated),
        "kernels_mape_pct": 100 * float(np.mean(np.abs(kernels))),
    }


def summary_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over networks, the worst plan, and the network that is ordered worst."""
    if not rows:
        return {"mape_pct": None, "max_error_pct": None, "kendall_tau": None, "held_out": []}
    summary: dict[str, Any] = {
        "mape_pct": float(np.mean([row["mape_pct"] for row in rows])),
        "max_error_pct": max(row["max_error_pct"] for row in rows),
        "kendall_tau": float(np.mean([row["kendall_tau"] for row in rows])),
        "lowest_kendall_tau": min(row["kendall_tau"] for row in rows),
        "held_out": [f"{row['network']} on {row['cpu']}" for row in rows],
    }
    if "other_cpu_mape_pct" in rows[0]:
        summary["other_cpu_mape_pct"] = float(np.mean([row["other_cpu_mape_pct"] for row in rows]))
        summary["other_cpu_kendall_tau"] = float(np.mean([row["other_cpu_kendall_tau"] for row in rows]))
    return summary


if __name__ == "__main__":
    main()
