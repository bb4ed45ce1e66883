"""What a latency table costs, what a second network adds to it, and whether a second profile finds the same.

Profiles into empty folders: one network, then another into the same table, then the first once more on its own.

    python benchmarks/profile_cost.py --json -
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aap_hw.device.connection import Device
    from aap_hw.lut.library_cache import LibraryCache
    from aap_hw.lut.table import LatencyTable


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from _report import benchmark_device, cache_of, print_report

    options = _options()
    device, how = benchmark_device(options.device, options.quick), (options.networks, cache_of(options.quick))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(options.keep or Path(folder) / "first.json")
        if path.exists():
            raise SystemExit(f"{path} exists, and a table is measured from nothing; choose another file for --keep")
        first, row = _profile(options.model, device, path, 0, *how)
        rows = [row]
        before = len(first)
        for name in filter(None, options.then.split(",")):
            table, row = _profile(name, device, path, before, *how)
            rows.append(row)
            before = len(table)
        second, row = _profile(options.model, device, Path(folder) / "second.json", 0, *how)
        rows.append({**row, "disagreement_pct": 100 * _disagreement(first, second)})
    summary = {
        "seconds": rows[0]["seconds"],
        "points": rows[0]["points"],
        "disagreement_pct": rows[-1]["disagreement_pct"],
    }
    print_report(rows, summary, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenet_v2", help="the first network, profiled twice")
    parser.add_argument("--then", default="resnet50", help="networks to add to its table, separated by commas")
    parser.add_argument("--networks", type=int, default=24, help="cut networks that calibrate each table")
    parser.add_argument("--keep", help="file for the first table, which is not there yet")
    parser.add_argument("--device", default="x86", help="device profile")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="a small network and few widths: does it run?")
    options = parser.parse_args()
    if options.quick:
        # To whose table it adds nothing: that is tried, and costs little.
        options.model, options.then, options.networks = "resnet20", "resnet20", 0
    return options


def _profile(
    name: str, device: Device, path: Path, before: int, networks: int, cache: LibraryCache | None
) -> tuple[LatencyTable, dict[str, object]]:
    from _report import say, zoo_name

    from aap_hw.inputs import Inputs
    from aap_hw.lut.profiling import profile_model
    from aap_hw.lut.subject import Workload
    from aap_hw.models import zoo

    model = zoo.build(zoo_name(name))
    say(f"profiling {name}")
    began = time.perf_counter()
    inputs = Inputs.of(model.input_shape)
    table = profile_model(Workload(model.name, model.module, inputs), device, path, networks=networks, cache=cache)
    seconds, points = time.perf_counter() - began, len(table) - before
    return table, {
        "model": name,
        "threads": device.profile.threads,
        "seconds": seconds,
        "points": points,
        "points_a_second": points / seconds,
        "reference_drift": table.measurement["reference_drift"],
    }


def _disagreement(one: LatencyTable, other: LatencyTable) -> float:
    """Median over the points that both tables hold of how far apart their latencies are, as a share."""
    shares = [
        abs(other.points[key][at].latency_us / point.latency_us - 1)
        for key, points in one.points.items()
        for at, point in points.items()
        if at in other.points.get(key, {})
    ]
    return statistics.median(shares)


if __name__ == "__main__":
    main()
