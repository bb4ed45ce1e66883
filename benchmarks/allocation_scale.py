"""Seconds and proven gap of the exact allocation for networks up to ResNet-152, DenseNet-121 and EfficientNet-B0.

Latencies are made up (`_made_up.py`), as only the size of the problem matters. With `--precision mixed` each group may
also be in int8.

    python benchmarks/allocation_scale.py --models mobilenet_v2,resnet152 --budgets 70,50,30 --json -

With `--memory 60` no plan takes more than so many percent of the unpruned network's memory, whatever its latency.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from _made_up import AT_MOST, GRANULARITY, made_up_us
from _report import print_report, say

from aap_hw.compile.front.domains import mixed_network
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.precision import MIXED
from aap_hw.compile.keys.target import DeviceTarget
from aap_hw.graph import ChannelGraph
from aap_hw.lut.enumeration import group_candidates
from aap_hw.lut.mixed import mixed_costs
from aap_hw.lut.predicting import kernel_costs
from aap_hw.policy import (
    Allocation,
    GroupChoice,
    Infeasible,
    KernelCost,
    PeakCost,
    Problem,
    Undecided,
    allocate,
    kept_share,
)
from aap_hw.prune.footprints import memory_cost, mixed_memory_cost

GAP, LIMIT_S = 5e-3, 30.0
# What int8 is made up to cost a group, as the log of what is kept.
LEAST_NOISE, MOST_NOISE = 0.001, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mobilenet_v2,resnet152,densenet121,efficientnet_b0", help="torchvision's")
    parser.add_argument("--budgets", default="70,50,30", help="percent of the unpruned latency")
    parser.add_argument("--memory", type=float, help="percent of the unpruned memory, kept beside each budget")
    parser.add_argument("--gap", type=float, default=GAP, help="share of the value that may be left unproven")
    parser.add_argument("--precision", choices=("fp32", MIXED), default="fp32", help="what groups may be in")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="one network and budget: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.models, options.budgets, options.precision, options.memory = "mobilenet_v2", "50", MIXED, 50.0
    shares = [float(share) / 100 for share in options.budgets.split(",")]
    rows = [row for name in options.models.split(",") for row in _rows(name, shares, options)]
    gaps = [row["gap"] for row in rows if row["gap"] is not None]
    summary = {
        "median_solve_s": statistics.median(row["seconds"] for row in rows),
        "max_solve_s": max(row["seconds"] for row in rows),
        "max_cpu_s": max(row["cpu_s"] for row in rows),
        "max_gap_pct": 100 * max(gaps) if gaps else None,
        "over_gap_or_time": sum(
            row["answer"] == "undecided" or (row["gap"] or 0.0) > options.gap or row["seconds"] > LIMIT_S
            for row in rows
        ),
        "out_of_reach": sum(row["answer"] == "out of reach" for row in rows),
    }
    print_report(rows, summary, options.json)


def _rows(name: str, shares: list[float], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.get_model(name, weights=None).eval()
    graph = ChannelGraph.trace(module, (torch.zeros(1, 3, 224, 224),))
    began = time.process_time()
    has_memory = options.memory is not None
    problem, kernels = (_mixed_problem if options.precision == MIXED else _problem)(graph, has_memory)
    built = time.process_time() - began
    dense_us = problem.spent("latency", problem.widest())
    kept = {"memory": options.memory / 100 * problem.spent("memory", problem.widest())} if has_memory else {}
    for share in shares:
        cpu_began, began = time.process_time(), time.perf_counter()
        limits = {"latency": share * dense_us, **kept}
        found: Allocation | None = None
        try:
            found = allocate(problem, limits, relative_gap=options.gap, time_limit_s=LIMIT_S)
            answer = "plan"
            say(f"{name} at {share:.0%}: {found.seconds:.2f} s, gap {found.gap:.2%}")
        except (Infeasible, Undecided) as refusal:
            answer = "undecided" if isinstance(refusal, Undecided) else "out of reach"
            say(f"{name} at {share:.0%}: {refusal}")
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        yield {
            "model": name,
            "precision": options.precision,
            "groups": len(problem.choices),
            "kernels": kernels,
            "labels": sum(len(choice.widths) for choice in problem.choices),
            "built_cpu_s": built,
            "budget_share": share,
            "memory_share": options.memory and options.memory / 100,
            "answer": answer,
            "spent_share": found and found.spent["latency"] / dense_us,
            "seconds": found.seconds if found else seconds,
            "cpu_s": cpu_s,
            "gap": found and found.gap,
        }


def _problem(graph: ChannelGraph, has_memory: bool) -> tuple[Problem, int]:
    """Widths alone, and the number of kernels."""
    network, random = partition(graph), np.random.default_rng(0)
    candidates = group_candidates(graph, GRANULARITY, AT_MOST)
    choices = [GroupChoice(g, widths, _value(widths, random)) for g, widths in candidates.items() if len(widths) > 1]
    costs: dict[str, Sequence[KernelCost] | PeakCost] = {
        "latency": kernel_costs(network, candidates, lambda kernel, widths: made_up_us(kernel.at(widths)))
    }
    if has_memory:
        costs["memory"] = memory_cost(network, candidates, _target())
    return Problem(choices, costs), len(network.kernels)


def _mixed_problem(graph: ChannelGraph, has_memory: bool) -> tuple[Problem, int]:
    """Widths and precisions."""
    from aap_hw.prune.mixture import Mixture

    mixed, random = mixed_network(graph), np.random.default_rng(0)
    mixture, candidates = Mixture(mixed), group_candidates(graph, GRANULARITY, AT_MOST)
    labels = mixture.labels(candidates, [name for name, widths in candidates.items() if len(widths) > 1])
    choices = []
    for each in labels:
        kept = _value(each.widths, random) if len(each.widths) > 1 else np.zeros(1)
        noise = random.uniform(LEAST_NOISE, MOST_NOISE)
        losses = [noise if precision == "int8" else 0.0 for precision in each.precisions] or [0.0]
        value = np.array([kept[w] - losses[p] for w, p in each.each])
        precisions = tuple(each.precisions[p] for _, p in each.each) if each.precisions else ()
        choices.append(GroupChoice(each.name, tuple(each.widths[w] for w, _ in each.each), value, precisions))
    costs: dict[str, Sequence[KernelCost] | PeakCost] = {
        "latency": mixed_costs(mixed, candidates, labels, lambda kernel, widths: made_up_us(kernel.at(widths)))
    }
    if has_memory:
        costs["memory"] = mixed_memory_cost(mixed, candidates, labels, _target())
    return Problem(choices, costs, (), mixture.alike(labels)), len(mixed.floating.kernels)


def _target() -> DeviceTarget:
    from aap_hw.device import load_profile
    from aap_hw.device.connection import LocalDevice

    return LocalDevice(load_profile("x86")).target


def _value(widths: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    return np.log(kept_share(random.lognormal(size=widths[-1]), widths))


if __name__ == "__main__":
    main()
