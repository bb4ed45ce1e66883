"""Single kernels as the latency table times them, with the arithmetic rate that they reach.

A core's limit is its clock times 32 for two fused multiply-add units of eight lanes (or one of sixteen).
Some kernels are timed at 57 channels in turn with the same kernel at 64, which fill whole vectors: what pruning to an
odd width costs. By the arithmetic alone the ratio would be 0.89 for a depthwise kernel and 0.79 for the others. The
worst ratio is of kernels as they are between convolutions, where depthwise ones read and make pitched images; depthwise
ones with something else on one side or on both have a figure of their own.

Example: python benchmarks/kernels.py --threads 1,2 --json -
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aap_hw.compile.keys.address import Address
    from aap_hw.compile.keys.key import KernelKey
    from aap_hw.lut.table import LatencyPoint

# (input size, kernel, stride, channels in, channels out): MobileNetV2, ResNet and odd counts.
CONVOLUTIONS = (
    (112, 1, 1, 32, 16),
    (112, 1, 1, 16, 96),
    (56, 1, 1, 144, 24),
    (28, 1, 1, 32, 192),
    (14, 1, 1, 96, 576),
    (7, 1, 1, 960, 160),
    (7, 1, 1, 320, 1280),
    (56, 3, 1, 64, 64),
    (28, 3, 1, 128, 128),
    (14, 3, 1, 256, 256),
    (7, 3, 1, 512, 512),
    (32, 3, 1, 16, 16),
    (14, 1, 1, 17, 33),
)
DEPTHWISE = ((112, 3, 1, 32), (56, 3, 1, 144), (14, 3, 1, 384), (7, 3, 1, 960), (14, 3, 1, 24), (14, 3, 1, 37))
BETWEEN = ("input", "output")  # what is pitched of a depthwise kernel between two convolutions
# Timed at ODD and at FULL channels: pointwise, 3x3, depthwise.
PAIRS = (("conv2d", 28, 1, 1, ()), ("conv2d", 28, 3, 1, ()), ("depthwise_conv2d", 28, 3, 1, BETWEEN))
ELSEWHERE = tuple(("depthwise_conv2d", 28, 3, 1, pitched) for pitched in (("input",), ("output",), ()))
ODD, FULL = 57, 64
TURNS = 7
QUICK = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="1", help="numbers of threads, separated by commas")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="a few kernels: does it run?")
    options = parser.parse_args()
    # Before TVM starts its thread pool.
    threads = [int(n) for n in options.threads.split(",")]
    os.environ["OMP_NUM_THREADS"] = os.environ["TVM_NUM_THREADS"] = str(max(threads))
    from _report import print_report

    from aap_hw.compile.keys.address import Address

    singles = [Address(_key("conv2d", s, k, t), (i, o)) for s, k, t, i, o in CONVOLUTIONS]
    singles += [Address(_key("depthwise_conv2d", s, k, t, BETWEEN), (c, c)) for s, k, t, c in DEPTHWISE]
    pairs = [_key(*sizes) for sizes in (*PAIRS, *ELSEWHERE)]
    turns = TURNS
    if options.quick:
        singles, pairs, turns = singles[:QUICK], pairs[2:4], 1
    rows = [row for n in threads for row in _rows(singles, pairs, n, turns)]
    # Of the first number of threads alone, so that a second one leaves the figure what it was.
    own = [row for row in rows if row["threads"] == threads[0]]
    rates = [row["gflops"] for row in own if row["kernel"].startswith("conv2d") and "ratio" not in row]
    ratios = {row["kernel"]: row["ratio"] for row in own if "ratio" in row}
    elsewhere = {str(_key(*sizes)) for sizes in ELSEWHERE}
    summary = {
        "median_convolution_gflops": statistics.median(rates),
        f"worst_ratio_{ODD}_to_{FULL}": max(ratio for kernel, ratio in ratios.items() if kernel not in elsewhere),
        "worst_ratio_elsewhere": max(ratio for kernel, ratio in ratios.items() if kernel in elsewhere),
    }
    print_report(rows, summary, options.json)


def _key(op: str, size: int, kernel: int, stride: int, pitched: tuple[str, ...] = ()) -> KernelKey:
    from aap_hw.compile.keys.key import KernelKey

    window = {"kernel": (kernel, kernel), "stride": (stride, stride), "padding": (kernel // 2, kernel // 2)}
    return KernelKey.make(op, (size, size), 1, **window, dilation=(1, 1), epilogue=("bias", "relu6"), pitched=pitched)


def _rows(singles: list[Address], pairs: list[KernelKey], threads: int, turns: int) -> list[dict[str, Any]]:
    from _report import say

    from aap_hw.compile.keys.address import Address
    from aap_hw.device import load_profile
    from aap_hw.device.connection import LocalDevice
    from aap_hw.lut.compiling import compile_batch
    from aap_hw.lut.measuring import time_point

    points = singles + [Address(key, (width, width)) for key in pairs for width in (ODD, FULL)]
    device = LocalDevice(load_profile("x86").model_copy(update={"threads": threads}))
    measure = device.profile.measure
    with tempfile.TemporaryDirectory() as folder:
        say(f"{threads} thread(s): compiling {len(points)} kernels")
        batch = compile_batch(points, device.target, measure.copies, Path(folder) / "kernels.so")
        library = device.load(batch.library)

        def timed(index: int) -> LatencyPoint:
            return time_point(library, batch, index, measure)

        say(f"{threads} thread(s): timing")
        rows = [_row(address, timed(index), threads) for index, address in enumerate(singles)]
        for first in range(len(singles), len(points), 2):
            taken = [(timed(first), timed(first + 1)) for _ in range(turns)]
            odd, full = (min(column, key=lambda point: point.latency_us) for column in zip(*taken, strict=True))
            ratio = statistics.median(a.latency_us / b.latency_us for a, b in taken)
            rows.append({**_row(points[first], odd, threads), f"us_at_width_{FULL}": full.latency_us, "ratio": ratio})
    return rows


def _row(address: Address, timed: LatencyPoint, threads: int) -> dict[str, Any]:
    from aap_hw.compile.families import multiply_accumulates

    return {
        "kernel": str(address.key),
        "width_in": address.width_in,
        "width_out": address.width_out,
        "threads": threads,
        "us": timed.latency_us,
        "spread_us": timed.spread_us,
        "gflops": 2 * multiply_accumulates(address) / timed.latency_us / 1e3,
    }


if __name__ == "__main__":
    main()
