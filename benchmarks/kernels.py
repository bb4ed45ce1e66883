"""Single kernels as the latency table times them, with the arithmetic rate that they reach.

A core's limit is its clock times 32 for two fused multiply-add units of eight lanes (or one of sixteen).

Example: python benchmarks/kernels.py --json -
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

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
QUICK = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="a few kernels: does it run?")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["TVM_NUM_THREADS"] = "1"
    from _report import print_report, say

    from aap_hw.compile.kernel import KernelKey
    from aap_hw.compile.shape import multiply_accumulates
    from aap_hw.device import load_profile
    from aap_hw.device.connection import LocalDevice
    from aap_hw.lut.measuring import compile_batch, time_point

    def key(op: str, size: int, kernel: int, stride: int) -> KernelKey:
        window = {"kernel": (kernel, kernel), "stride": (stride, stride), "padding": (kernel // 2, kernel // 2)}
        return KernelKey.make(op, (size, size), 1, **window, dilation=(1, 1), epilogue=("bias", "relu6"))

    points = [(key("conv2d", s, k, t), i, o) for s, k, t, i, o in CONVOLUTIONS]
    points += [(key("depthwise_conv2d", s, k, t), c, c) for s, k, t, c in DEPTHWISE]
    points = points[:QUICK] if options.quick else points
    device = LocalDevice(load_profile("x86"))
    measure = device.profile.measure
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        say(f"compiling {len(points)} kernels")
        batch = compile_batch(points, device.target, measure.copies, Path(folder) / "kernels.so")
        library = device.load(batch.library)
        for index, address in enumerate(points):
            timed = time_point(library, batch, index, measure)
            rows.append(
                {
                    "kernel": str(address[0]),
                    "width_in": address[1],
                    "width_out": address[2],
                    "us": timed.median_us,
                    "spread_us": timed.spread_us,
                    "gflops": 2 * multiply_accumulates(*address) / timed.median_us / 1e3,
                }
            )
    rates = [row["gflops"] for row in rows if str(row["kernel"]).startswith("conv2d")]
    print_report(rows, {"median_convolution_gflops": statistics.median(rates)}, options.json)


if __name__ == "__main__":
    main()
