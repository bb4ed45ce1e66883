"""Whether a table's predictions hold: random width plans, never profiled as networks, measured end to end.

Makes a table in a temporary folder, or uses and extends the one of --lut. Run it with nothing else on the machine.

    python benchmarks/lut_fidelity.py --models mobilenet_v2,resnet50 --plans 50 --seed 1 --json -
    python benchmarks/lut_fidelity.py --precision int8 --models mobilenet_v2,resnet50 --plans 25 --json -
    python benchmarks/lut_fidelity.py --models "yolov8n raw heads,timm:mobilevit_s" --plans 15 --json -
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aap_hw.compile.keys.precision import NetworkPrecision
    from aap_hw.device.connection import Device
    from aap_hw.lut.library_cache import LibraryCache
    from aap_hw.lut.subject import Workload
    from aap_hw.lut.table import Validation


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from _report import benchmark_device, cache_of, print_report

    from aap_hw.lut.fidelity import fidelity_of

    options = _options()
    device = benchmark_device(options.device, options.quick)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(options.lut or Path(folder) / "table.json")
        everything: list[Validation] = []
        rows = [
            _row(name, options, device, path, cache_of(options.quick), everything) for name in options.models.split(",")
        ]
    together = fidelity_of(everything)
    assert together is not None
    summary = {
        "mape_pct": max(row["mape_pct"] for row in rows),
        "max_error_pct": max(row["max_error_pct"] for row in rows),
        # Of the model that is ordered worst, and of all plans as one list, which models of different size flatter.
        "kendall_tau": min((row["kendall_tau"] for row in rows if row["kendall_tau"] is not None), default=None),
        "kendall_tau_all_plans": together.kendall_tau,
    }
    print_report(rows, summary, options.json)


def _options() -> argparse.Namespace:
    from aap_hw.compile.keys.precision import FP32, NETWORK_PRECISIONS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models",
        default="mobilenet_v2,resnet50",
        help="names of aap-hw's zoo, torchvision's, or of benchmarks/_deployed_set.py",
    )
    parser.add_argument("--networks", type=int, default=24, help="cut networks that calibrate a table made here")
    parser.add_argument("--device", default="x86", help="device profile")
    parser.add_argument("--precision", choices=NETWORK_PRECISIONS, default=FP32, help="what the models compute in")
    parser.add_argument("--plans", type=int, default=50, help="width plans of each model")
    parser.add_argument("--seed", type=int, default=0, help="which plans are drawn")
    parser.add_argument("--lut", help="table to use, and to extend by what it lacks, networks and plans")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="few plans of a small network: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.models, options.plans, options.networks = "resnet20", 2, 0
    return options


def _row(
    name: str,
    options: argparse.Namespace,
    device: Device,
    path: Path,
    cache: LibraryCache | None,
    everything: list[Validation],
) -> dict[str, object]:
    from _report import say

    from aap_hw.lut.fidelity import fidelity_of
    from aap_hw.lut.profiling import profile_model
    from aap_hw.lut.validating import validate_model

    workload = _built(name, options.precision)
    say(f"{name}: profiling in {options.precision}")
    began = time.perf_counter()
    plans = options.plans
    table = profile_model(workload, device, path, networks=options.networks, cache=cache)
    profile_s = time.perf_counter() - began
    say(f"{name}: measuring {plans} plans")
    entries = validate_model(workload, device, path, plans=plans, seed=options.seed)
    everything += entries
    fidelity = fidelity_of(entries)
    assert fidelity is not None
    return {
        "model": name,
        "precision": options.precision,
        "threads": device.profile.threads,
        "plans": fidelity.plans,
        "seed": options.seed,
        "mape_pct": fidelity.mean_pct,
        "max_error_pct": fidelity.worst_pct,
        "kendall_tau": fidelity.kendall_tau,
        "bias_pct": 100 * sum(v.predicted_us / v.measured_us - 1 for v in entries) / len(entries),
        "slowest_ms": max(v.measured_us for v in entries) / 1e3,
        "quickest_ms": min(v.measured_us for v in entries) / 1e3,
        "profile_s": profile_s,
        "points": len(table),
        "reference_drift": table.measurement["reference_drift"],
    }


def _built(name: str, precision: NetworkPrecision) -> Workload:
    from _deployed_set import NETWORKS
    from _report import zoo_name

    from aap_hw.inputs import Inputs
    from aap_hw.lut.subject import Workload
    from aap_hw.models import zoo

    if name in NETWORKS:
        inputs = Inputs.of(*NETWORKS[name].shapes)
        return Workload(name, NETWORKS[name].build().eval(), inputs, precision=precision)
    model = zoo.build(zoo_name(name))
    return Workload(model.name, model.module, Inputs.of(model.input_shape), precision=precision)


if __name__ == "__main__":
    main()
