"""Our compiled networks against ONNX Runtime: the same torchvision model, the same weights, timed in turn in one run.

fp32. ONNX Runtime runs with all graph optimisations and the same number of threads. ``--beside`` adds what else a user
might run, timed in the same turns: PyTorch (eager, channels last, batch normalisation folded), torch.compile, and
TVM's default schedules. Run it with nothing else on the machine; compare ratios, not milliseconds of different runs.
All share one process, so that on several cores threads of one engine can disturb another one: there, look at the best
times too (``ours_best_ms``, ``onnxruntime_best_ms``), or take `versus_engines.py`, which keeps engines apart.

    python benchmarks/versus_onnxruntime.py --models mobilenet_v2,resnet18 --threads 1,2 --json -
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np

TURNS = 30
BESIDE = ("openvino", "torch", "torch_compile", "tvm_default")


def main() -> None:
    options = _options()
    # Before torch, TVM and ONNX Runtime start their thread pools.
    threads, batches = ([int(n) for n in text.split(",")] for text in (options.threads, options.batch))
    os.environ["OMP_NUM_THREADS"] = os.environ["TVM_NUM_THREADS"] = str(max(threads))
    from _report import print_report

    beside = [name for name in options.beside.split(",") if name]
    cases = product(options.models.split(","), threads, batches)
    rows = [_compare(name, n, batch, beside, options) for name, n, batch in cases]
    summary = {
        **{
            f"geomean_ratio_{n}": statistics.geometric_mean(r["ratio"] for r in rows if r["threads"] == n)
            for n in threads
        },
        "worst_ratio": max(row["ratio"] for row in rows),
        "worst_relative_difference": max(row["relative_difference"] for row in rows),
    }
    print_report(rows, summary, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mobilenet_v2", help="torchvision names, separated by commas")
    parser.add_argument("--threads", default="1", help="numbers of threads, separated by commas")
    parser.add_argument("--batch", default="1", help="numbers of images a call, separated by commas")
    parser.add_argument(
        "--beside",
        default="",
        help=f"more to time, of {','.join(BESIDE)}; the last takes seconds a call",
    )
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--turns", type=int, default=TURNS, help="how often each takes its turn")
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument("--quick", action="store_true", help="a small image and few turns: does it run?")
    options = parser.parse_args()
    if unknown := {*filter(None, options.beside.split(","))} - {*BESIDE}:
        parser.error(f"there is no engine {min(unknown)}; there are {', '.join(BESIDE)}")
    if options.quick:
        options.turns, options.size, options.beside = 3, 64, "torch"
    return options


def _compare(name: str, threads: int, batch: int, beside: list[str], options: argparse.Namespace) -> dict[str, object]:
    import torch
    import torchvision
    from _engines import ENGINES, milliseconds
    from _report import say

    from aap_hw.models.initialise import calibrate_batch_norm

    say(f"{name}, {threads} thread(s), batch {batch}: compiling")
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model = torchvision.models.get_model(name, weights=None).eval()
    calibrate_batch_norm(model, (3, 64, 64), seed=0)
    image = torch.rand(batch, 3, options.size, options.size)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        began = time.perf_counter()
        calls = {"ours": ENGINES["ours"](model, (image,), threads, Path(folder))}
        compile_s = time.perf_counter() - began
        calls |= {one: ENGINES[one](model, (image,), threads, Path(folder)) for one in ("onnxruntime", *beside)}
        (expected,), (actual,) = calls["onnxruntime"](), calls["ours"]()
        difference = float(np.abs(actual - expected).max() / np.abs(expected).max())
        say(f"{name}, {threads} thread(s), batch {batch}: timing")
        samples: dict[str, list[float]] = {one: [] for one in calls}
        for _ in range(options.turns):
            for one, call in calls.items():
                samples[one].append(milliseconds(call))
    return {
        "model": name,
        "threads": threads,
        "batch": batch,
        **{f"{one}_ms": statistics.median(times) for one, times in samples.items()},
        "ratio": statistics.median(a / b for a, b in zip(samples["ours"], samples["onnxruntime"], strict=True)),
        "ours_best_ms": min(samples["ours"]),
        "onnxruntime_best_ms": min(samples["onnxruntime"]),
        "compile_s": compile_s,
        "relative_difference": difference,
    }


if __name__ == "__main__":
    main()
