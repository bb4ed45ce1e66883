"""Our compiled networks against ONNX Runtime: the same torchvision model, the same weights, timed in turn in one run.

fp32, batch 1. ONNX Runtime runs with all graph optimisations and the same number of threads. Run it with nothing else
on the machine; compare ratios, not milliseconds of different runs.

    python benchmarks/versus_onnxruntime.py --models mobilenet_v2 --threads 1 --json -
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

TURNS = 30
SAMPLE_S = 0.05


def main() -> None:
    options = _options()
    # Before torch, TVM and ONNX Runtime start their thread pools.
    threads = [int(n) for n in options.threads.split(",")]
    os.environ["OMP_NUM_THREADS"] = os.environ["TVM_NUM_THREADS"] = str(max(threads))
    from _report import print_report

    rows = [_compare(name, n, options.turns, options.size) for name in options.models.split(",") for n in threads]
    ratios = [row["ratio"] for row in rows]
    summary = {
        "worst_ratio": max(ratios),
        "median_ratio": statistics.median(ratios),
        "max_abs_diff": max(row["max_abs_diff"] for row in rows),
    }
    print_report(rows, summary, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mobilenet_v2", help="torchvision names, separated by commas")
    parser.add_argument("--threads", default="1", help="numbers of threads, separated by commas")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--turns", type=int, default=TURNS, help="how often each takes its turn")
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument("--quick", action="store_true", help="a small image and few turns: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.turns, options.size = 3, 64
    return options


def _compare(name: str, threads: int, turns: int, size: int) -> dict[str, object]:
    import torch
    import torchvision
    from _report import say

    from aap_hw.models.initialise import calibrate_batch_norm

    say(f"{name}, {threads} thread(s): compiling")
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    calibrate_batch_norm(model, (3, 64, 64), seed=0)
    image = torch.rand(1, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        ours, compile_s = _ours(model, image, threads, Path(folder))
        theirs = _onnxruntime(model, image, threads, Path(folder))
        difference = float(np.abs(ours() - theirs()).max())
        scale = float(np.abs(theirs()).max())
        say(f"{name}, {threads} thread(s): timing")
        samples: dict[str, list[float]] = {"ours": [], "onnxruntime": []}
        for _ in range(turns):
            samples["ours"].append(_milliseconds(ours))
            samples["onnxruntime"].append(_milliseconds(theirs))
    ours_ms, theirs_ms = (statistics.median(samples[k]) for k in ("ours", "onnxruntime"))
    return {
        "model": name,
        "threads": threads,
        "ours_ms": ours_ms,
        "onnxruntime_ms": theirs_ms,
        "ratio": statistics.median(a / b for a, b in zip(samples["ours"], samples["onnxruntime"], strict=True)),
        "ours_best_ms": min(samples["ours"]),
        "onnxruntime_best_ms": min(samples["onnxruntime"]),
        "compile_s": compile_s,
        "max_abs_diff": difference,
        "output_scale": scale,
    }


def _ours(model: object, image: object, threads: int, folder: Path) -> tuple[Callable[[], np.ndarray], float]:
    from aap_hw.compile.lowering import compile_network
    from aap_hw.device import load_profile
    from aap_hw.device.connection import LocalDevice

    device = LocalDevice(load_profile("x86").model_copy(update={"threads": threads}))
    began = time.perf_counter()
    compile_network(model, image, device.target, folder / "ours.so")
    compile_s = time.perf_counter() - began
    library = device.load(folder / "ours.so")
    library.set_inputs("main", [image.numpy()])
    return lambda: library.run("main"), compile_s


def _onnxruntime(model: object, image: object, threads: int, folder: Path) -> Callable[[], np.ndarray]:
    import onnxruntime
    import torch

    path = folder / "model.onnx"
    torch.onnx.export(model, (image,), str(path), dynamo=True, verbose=False)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, feed)[0]


def _milliseconds(call: Callable[[], np.ndarray]) -> float:
    """Mean time of calls for about a twentieth of a second, after one that warms the caches."""
    call()
    began = time.perf_counter()
    count = 0
    while count == 0 or time.perf_counter() - began < SAMPLE_S:
        call()
        count += 1
    return (time.perf_counter() - began) / count * 1e3


if __name__ == "__main__":
    main()
