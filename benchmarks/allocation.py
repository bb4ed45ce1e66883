"""Our exact choice of widths against published ones: attention kept, predicted and measured latency, solver time.

All choose from the same candidates, on the same latency table, by the same attention (of the embedded images).

    python benchmarks/allocation.py --models mobilenet_v2,resnet50,resnet56 --budgets 80,60,40,25 --json -

With `--precision mixed` it is our plans of widths and precisions against our plans in one precision; the table must
hold the networks in mixed precision ('aap-hw profile --precision mixed').

    python benchmarks/allocation.py --precision mixed --lut TABLE --budgets 80,50,30,20 --json -
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parent.parent / "lut" / "x86.json"


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from _report import print_report

    options = _options()
    budgets = [float(share) / 100 for share in options.budgets.split(",")]
    rows, summary = list[dict[str, Any]](), dict[str, Any]()
    if "mixed" in options.precision:
        from _mixed_allocation import rows_of, summary_of

        rows += [row for name in options.models.split(",") for row in rows_of(name, budgets, options)]
        summary |= summary_of(rows)
    if "fp32" in options.precision:
        widths = [row for name in options.models.split(",") for row in _rows(name, budgets, options)]
        rows, summary = rows + widths, summary | _summary(widths)
    print_report(rows, summary, options.json)


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    ours = [row for row in rows if row["allocator"] == "exact"]
    reached = [row for row in ours if row["kept_attention"] is not None]
    misses = [row["measured_share"] / row["budget_share"] - 1 for row in reached if row["measured_share"] is not None]
    return {
        "exact_never_below": all(
            _best_of_others(row, rows) <= (row["kept_attention"] or 0.0) * (1 + 1e-3) for row in ours
        ),
        "out_of_reach": len(ours) - len(reached),
        "median_solve_s": statistics.median(row["seconds"] for row in reached) if reached else None,
        "max_gap_pct": 100 * max(row["gap"] for row in reached) if reached else None,
        "worst_budget_miss_pct": 100 * max(misses) if misses else None,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mobilenet_v2,resnet50,resnet56", help="names of torchvision's or our zoo")
    parser.add_argument("--budgets", default="80,60,40,25", help="percent of the unpruned network's predicted latency")
    parser.add_argument("--lut", default=str(SHIPPED), help="latency table that holds the models' kernels")
    parser.add_argument("--device", default="x86", help="device profile to measure with")
    parser.add_argument("--measure", default="all", help="with fp32: allocators whose networks are measured, or all")
    parser.add_argument("--libraries", help="with fp32: folder that compiled networks are kept in and taken from")
    parser.add_argument("--no-measure", action="store_true", help="predict only, and compile what --libraries lacks")
    parser.add_argument("--precision", choices=("fp32", "mixed"), default="fp32", help="what the networks compute in")
    parser.add_argument("--made-up", action="store_true", help="with mixed: latencies that nobody measured")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="one small network, predicted only: does it run?")
    options = parser.parse_args()
    if options.made_up and options.precision == "fp32":
        parser.error("--made-up is for --precision mixed")
    options.precision = ("fp32", "mixed") if options.quick else (options.precision,)
    if options.quick:
        options.models, options.budgets, options.no_measure, options.made_up = "resnet20", "50", True, True
    options.no_measure |= options.made_up
    return options


def _rows(name: str, budgets: list[float], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from _allocators import FLOPS, LATENCY, exact, flops_greedy, halp, netadapt, threshold, uniform
    from _report import say, zoo_name
    from _torch_pruning import as_allocator

    from aap_hw.lut.file import load_table
    from aap_hw.models.origin import Origin
    from aap_hw.prune.baseline import baseline
    from aap_hw.prune.scoring import scores_of
    from aap_hw.prune.task import PruneSettings, Task
    from aap_hw.train.data import load_embedded

    model = zoo_name(name)
    table = load_table(Path(options.lut))
    task = Task(Origin.of(model, _input_of(model)), table, load_embedded())
    settings = PruneSettings(calibration_images=8 if options.quick else None)
    dense = baseline(task, settings)
    scores = dict(scores_of(task, dense.module, dense.graph, settings))
    planner = dense.planner
    # Whole branches are removed by our choice only; the published ones that are compared know nothing of depth.
    deep, flat = planner.problem(scores, [FLOPS]), replace(planner, blocks=()).problem(scores, [FLOPS])
    allocators = {
        "exact": (deep, exact),
        "exact_no_depth": (flat, exact),
        "uniform": (flat, uniform),
        "flops_greedy": (flat, flops_greedy),
        "netadapt": (flat, netadapt),
        "halp": (flat, halp),
        "threshold": (flat, threshold(scores)),
        "torch_pruning": (flat, as_allocator(dense.module, dense.graph, _input_of(model), planner)),
    }
    dense_ms = planner.costs.dense[LATENCY]
    found = []
    for share in budgets:
        alone_us = planner.costs.alone_us(share * dense_ms, planner.costs.slowdown)
        for allocator, (problem, choose) in allocators.items():
            began = time.perf_counter()
            chosen = choose(problem, alone_us)
            seconds = time.perf_counter() - began
            widths = kept_attention = None
            if chosen is not None:
                kept = {c.name: c.widths[at] for c, at in zip(problem.choices, chosen.plan, strict=True)}
                widths = {**planner.costs.network.dense, **kept}
                kept_attention = math.exp(problem.value(chosen.plan) / len(kept))
            found.append((share, allocator, chosen, widths, kept_attention, seconds))
        say(f"{name}: planned {share:.0%}")
    timed = [each[3] for each in found if options.measure == "all" or each[1] in options.measure.split(",")]
    is_needed = options.libraries or not options.no_measure
    measured = _measured(dense, task, options, timed) if is_needed else {}
    for share, allocator, chosen, widths, kept_attention, seconds in found:
        measured_ms, measured_share = measured.get(_known(widths), (None, None))
        yield {
            "model": name,
            "threads": table.device["threads"],
            "budget_share": share,
            "allocator": allocator,
            "kept_attention": kept_attention,
            "branches_removed": None if widths is None else sum(width == 0 for width in widths.values()),
            "predicted_ms": None if widths is None else planner.costs.spent(widths)[LATENCY],
            "measured_ms": measured_ms,
            "measured_share": measured_share,
            "seconds": seconds,
            "gap": None if chosen is None else chosen.gap,
        }


def _measured(dense: Any, task: Any, options: argparse.Namespace, plans: list[Any]) -> dict[Any, tuple[float, float]]:
    """Latency of each plan's network in ms, and as a share of the unpruned one's timed beside it."""
    import hashlib
    import tempfile

    from _beside_unpruned import timed_beside
    from _report import say

    from aap_hw.compile.keys.key import SCHEDULES
    from aap_hw.compile.library.lowering import compile_network
    from aap_hw.device import load_profile
    from aap_hw.device.connection import LocalDevice

    device, image = LocalDevice(load_profile(options.device)), task.origin.inputs.zeros()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.libraries or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {_known(dense.network.dense): dense.network.dense}
        wanted |= {_known(widths): widths for widths in plans if widths is not None}
        files = {}
        for number, (known, widths) in enumerate(wanted.items(), start=1):
            digest = hashlib.sha256(repr((task.origin.model, known, SCHEDULES, device.target.options)).encode())
            files[known] = folder / f"{digest.hexdigest()[:16]}.so"
            if not files[known].exists():
                keep = {name: range(width) for name, width in widths.items() if width < dense.network.dense[name]}
                half = files[known].with_suffix(".half")
                compile_network(dense.graph.cut(dense.module, keep), image, device.target, half)
                half.rename(files[known])
                say(f"compiled {number} of {len(wanted)} networks")
        if options.no_measure:
            return {}
        unpruned, *others = files.values()
        found = timed_beside(unpruned, others, image, device)
        return {known: found[file] for known, file in files.items() if file in found}


def _known(widths: Any) -> Any:
    return None if widths is None else tuple(sorted(widths.items()))


def _best_of_others(row: dict[str, Any], rows: list[dict[str, Any]]) -> float:
    same = [r for r in rows if (r["model"], r["budget_share"]) == (row["model"], row["budget_share"])]
    return max((r["kept_attention"] for r in same if r is not row and r["kept_attention"] is not None), default=0.0)


def _input_of(model: str) -> tuple[int, int, int]:
    from aap_hw.models import zoo

    return zoo.entry(model).input_shape


if __name__ == "__main__":
    main()
