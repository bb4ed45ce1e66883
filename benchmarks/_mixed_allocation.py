"""Plans of widths and precisions beside those of each precision alone, at the same budget of latency."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def rows_of(name: str, shares: list[float], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What a mixture, float32 alone and int8 alone keep of the attention and take, at shares of float32's latency."""
    from _made_up import AT_MOST, GRANULARITY, made_up_table
    from _report import say, zoo_name

    from aap_hw.compile.front.domains import mixed_network
    from aap_hw.graph import ChannelGraph
    from aap_hw.lut.enumeration import group_candidates
    from aap_hw.lut.file import load_table
    from aap_hw.models.origin import Origin
    from aap_hw.policy import LATENCY, Undecided
    from aap_hw.prune.baseline import baseline
    from aap_hw.prune.scoring import scores_of
    from aap_hw.prune.task import PruneSettings, Task
    from aap_hw.prune.unreachable import Unreachable
    from aap_hw.train.data import load_embedded

    origin = Origin.of(zoo_name(name))
    if options.made_up:
        graph = ChannelGraph.trace(origin.build(), origin.inputs.zeros())
        table = made_up_table(mixed_network(graph).everything, group_candidates(graph, GRANULARITY, AT_MOST))
    else:
        table = load_table(Path(options.lut))
    task = Task(origin, table, load_embedded(), allow_emulated=options.made_up)
    settings = PruneSettings(calibration_images=8 if options.quick else None, precision="mixed")
    dense = baseline(task, settings)
    scores, planner = scores_of(task, dense.module, dense.graph, settings), dense.planner
    found = []
    for share in shares:
        began, cpu_began = time.perf_counter(), time.process_time()
        try:
            plans = planner.plans(scores, {LATENCY.name: share * dense.dense_ms})
        except (Unreachable, Undecided) as refusal:
            say(f"{name} at {share:.0%}: {refusal}")
            plans = {}
            yield {"model": name, "budget_share": share, "allocator": "mixed", "kept_attention": None}
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        # As `plan` does: the mixture, unless a precision alone was predicted by its own slowdown to keep more.
        best = max(plans, key=lambda each: plans[each].kept_attention, default=None)
        found += [(share, precision, plan, (seconds, cpu_s), precision == best) for precision, plan in plans.items()]
        solving = sum(plan.seconds for plan in plans.values())
        say(f"{name}: planned {share:.0%} in {seconds:.1f} s, of which {solving:.1f} s solving")
    measured = [None] * len(found) if options.no_measure else _measured(dense, origin, options, found)
    for (share, precision, plan, (seconds, cpu_s), is_best), measured_share in zip(found, measured, strict=True):
        in_int8 = [each == "int8" for each in (plan.precisions or {}).values()]
        yield {
            "model": name,
            "latencies": "made up" if options.made_up else table.device["name"],
            "budget_share": share,
            "allocator": precision,
            "is_taken": is_best,
            "kept_attention": plan.kept_attention,
            "values_in_int8": sum(in_int8),
            "values": len(in_int8),
            "branches_removed": sum(width == 0 for width in plan.widths.values()),
            "predicted_ms": plan.predicted_ms,
            "measured_share": measured_share,
            "seconds": plan.seconds,
            "planned_s": seconds,
            # Of all programs of this budget; the machine may be busy.
            "planned_cpu_s": cpu_s,
            "gap": plan.gap,
        }


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often a mixture keeps less than a precision alone, and how well it is solved and predicted.

    The plan that is taken never does: it is the best of all.
    """
    import statistics

    asked, rows = len({(row["model"], row["budget_share"]) for row in rows}), _reached(rows)
    mixed = [row for row in rows if row["allocator"] == "mixed"]
    taken = [row for row in rows if row["is_taken"]]
    misses = [row["measured_share"] / row["budget_share"] - 1 for row in taken if row["measured_share"] is not None]

    def is_below(row: dict[str, Any]) -> bool:
        """Whether a precision alone keeps at least 1 % more than a plan at the same budget."""
        same = [r for r in rows if (r["model"], r["budget_share"]) == (row["model"], row["budget_share"])]
        return any(other["kept_attention"] * (1 - 1e-2) > row["kept_attention"] for other in same)

    out_of_reach = {"out_of_reach": asked - len(taken)}
    if not mixed:
        return out_of_reach
    return out_of_reach | {
        "mixture_below_at_one_slowdown": sum(map(is_below, mixed)),
        "median_solve_s": statistics.median(row["seconds"] for row in mixed),
        "max_solve_s": max(row["seconds"] for row in mixed),
        "max_planned_cpu_s": max(row["planned_cpu_s"] for row in mixed),
        "max_gap_pct": 100 * max(row["gap"] for row in mixed),
        "worst_budget_miss_pct": 100 * max(misses) if misses else None,
    }


def _reached(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["kept_attention"] is not None]


def _measured(dense: Any, origin: Any, options: argparse.Namespace, found: list[Any]) -> list[float]:
    """Latency of each plan's network, as a share of the unpruned one's in float32 timed beside it."""
    import tempfile

    from _beside_unpruned import timed_beside
    from _report import say

    from aap_hw.compile.library.lowering import compile_network
    from aap_hw.device import load_profile
    from aap_hw.device.connection import LocalDevice
    from aap_hw.quantize import for_timing

    device, image = LocalDevice(load_profile(options.device)), origin.inputs.zeros()
    with tempfile.TemporaryDirectory() as temporary:
        unpruned = Path(temporary) / "unpruned.so"
        compile_network(dense.module, image, device.target, unpruned)
        files = []
        for number, (_, _, plan, _, _) in enumerate(found):
            files.append(Path(temporary) / f"{number}.so")
            module = dense.graph.cut(dense.module, plan.keep)
            if dense.planner.costs.mixture.network.is_floating(plan.floats):
                compile_network(module, image, device.target, files[-1])
            else:
                program, scales = for_timing(module, origin.inputs, plan.floats)
                compile_network(program, image, device.target, files[-1], (), scales)
            say(f"compiled {number + 1} of {len(found)} networks")
        timed = timed_beside(unpruned, files, image, device)
        return [timed[file][1] for file in files]
