"""Seconds and proven gap of the exact allocation for networks up to ResNet-152, DenseNet-121 and EfficientNet-B0.

Latencies are made up: arithmetic at a fixed rate in whole vectors of channels, memory traffic, a microsecond a call and
some noise of the kernel. They have the steps and the size of real ones, so that the time to solve is told without hours
of profiling; they are no latencies of any device.

    python benchmarks/allocation_scale.py --models mobilenet_v2,resnet152 --budgets 70,50,30 --json -
"""

from __future__ import annotations

import argparse
import math
import statistics
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from _report import print_report, say

from aap_hw.compile.families import multiply_accumulates, weight_elements
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.graph import ChannelGraph
from aap_hw.lut.enumeration import group_candidates
from aap_hw.lut.predicting import kernel_costs
from aap_hw.policy import GroupChoice, Problem, allocate, kept_share

GRANULARITY, AT_MOST = 8, 12  # of device_profiles/x86.toml
GAP, LIMIT_S = 5e-3, 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mobilenet_v2,resnet152,densenet121,efficientnet_b0", help="torchvision's")
    parser.add_argument("--budgets", default="70,50,30", help="percent of the unpruned latency")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="one network and budget: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.models, options.budgets = "mobilenet_v2", "50"
    shares = [float(share) / 100 for share in options.budgets.split(",")]
    rows = [row for name in options.models.split(",") for row in _rows(name, shares)]
    summary = {
        "median_solve_s": statistics.median(row["seconds"] for row in rows),
        "max_solve_s": max(row["seconds"] for row in rows),
        "max_gap_pct": 100 * max(row["gap"] for row in rows),
        "over_gap_or_time": sum(row["gap"] > GAP or row["seconds"] > LIMIT_S for row in rows),
    }
    print_report(rows, summary, options.json)


def _rows(name: str, shares: list[float]) -> Iterator[dict[str, Any]]:
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.get_model(name, weights=None).eval()
    graph = ChannelGraph.trace(module, (torch.zeros(1, 3, 224, 224),))
    network, random = partition(graph), np.random.default_rng(0)
    candidates = group_candidates(graph, GRANULARITY, AT_MOST)
    choices = [
        GroupChoice(group, widths, np.log(kept_share(random.lognormal(size=widths[-1]), widths)))
        for group, widths in candidates.items()
        if len(widths) > 1
    ]
    costs = kernel_costs(network, candidates, lambda kernel, widths: made_up_us(kernel.at(widths)))
    problem = Problem(choices, {"latency": costs})
    dense_us = problem.spent("latency", problem.widest())
    for share in shares:
        found = allocate(problem, {"latency": share * dense_us}, relative_gap=GAP, time_limit_s=LIMIT_S)
        say(f"{name} at {share:.0%}: {found.seconds:.2f} s, gap {found.gap:.2%}")
        yield {
            "model": name,
            "groups": len(choices),
            "kernels": len(network.kernels),
            "budget_share": share,
            "spent_share": found.spent["latency"] / dense_us,
            "seconds": found.seconds,
            "gap": found.gap,
        }


def made_up_us(address: Address) -> float:
    """A latency of a kernel such as a CPU of 100 GFLOP/s and 20 GB/s might have."""
    key, (width_in, width_out) = address.key, address.widths
    vectors = GRANULARITY * math.ceil(width_out / GRANULARITY)
    arithmetic = multiply_accumulates(Address(key, (width_in, vectors))) / 50e3
    traffic = 4 * (math.prod(key.size or (1,)) * (width_in + width_out) + weight_elements(address))
    noise = zlib.crc32(f"{key} {width_in} {width_out}".encode()) / 2**32
    return (1 + arithmetic + traffic / 20e3) * (1 + 0.03 * noise)


if __name__ == "__main__":
    main()
