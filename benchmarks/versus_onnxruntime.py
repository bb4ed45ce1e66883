"""Our compiled networks against ONNX Runtime: the same torchvision model, the same weights, timed in turn in one run.

fp32. ONNX Runtime runs with all graph optimisations and the same number of threads. ``--beside`` adds what else a user
might run, timed in the same turns: PyTorch (eager, channels last, batch normalisation folded), torch.compile, and
TVM's default schedules. Run it with nothing else on the machine; compare ratios, not milliseconds of different runs.

    python benchmarks/versus_onnxruntime.py --models mobilenet_v2,resnet18 --threads 1,2 --json -
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np

TURNS = 30
SAMPLE_S = 0.05
SPINNING_S = 0.1

Call = Callable[[], np.ndarray]


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
    parser.add_argument("--beside", default="", help=f"more to time, of {','.join(OTHERS)}; tvm takes seconds a call")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--turns", type=int, default=TURNS, help="how often each takes its turn")
    parser.add_argument("--size", type=int, default=224, help="height and width of the image")
    parser.add_argument("--quick", action="store_true", help="a small image and few turns: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.turns, options.size, options.beside = 3, 64, "torch"
    return options


def _compare(name: str, threads: int, batch: int, beside: list[str], options: argparse.Namespace) -> dict[str, object]:
    import torch
    import torchvision
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
        calls = {"ours": _ours(model, image, threads, Path(folder))}
        compile_s = time.perf_counter() - began
        calls["onnxruntime"] = _onnxruntime(model, image, threads, Path(folder))
        calls |= {other: OTHERS[other](model, image, threads, Path(folder)) for other in beside}
        expected = calls["onnxruntime"]()
        difference = float(np.abs(calls["ours"]() - expected).max() / np.abs(expected).max())
        say(f"{name}, {threads} thread(s), batch {batch}: timing")
        samples: dict[str, list[float]] = {one: [] for one in calls}
        for _ in range(options.turns):
            for one, call in calls.items():
                samples[one].append(_milliseconds(call))
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


def _ours(model: object, image: object, threads: int, folder: Path) -> Call:
    from aap_hw.compile.library.lowering import compile_network
    from aap_hw.device import load_profile
    from aap_hw.device.connection import LocalDevice

    device = LocalDevice(load_profile("x86").model_copy(update={"threads": threads}))
    compile_network(model, image, device.target, folder / "ours.so")
    library = device.load(folder / "ours.so")
    library.set_inputs("main", [image.numpy()])
    return lambda: library.run("main")[0]


def _onnxruntime(model: object, image: object, threads: int, folder: Path) -> Call:
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


def _torch_eager(model: object, image: object, threads: int, folder: Path) -> Call:
    import torch
    from torch.fx.experimental.optimization import fuse

    folded = fuse(model).to(memory_format=torch.channels_last)
    pixels = image.to(memory_format=torch.channels_last)
    return lambda: folded(pixels).numpy()


def _torch_compile(model: object, image: object, threads: int, folder: Path) -> Call:
    import torch

    compiled = torch.compile(model)
    return lambda: compiled(image).numpy()


def _tvm_default(model: object, image: object, threads: int, folder: Path) -> Call:
    import torch
    import tvm
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    with torch.no_grad():
        module = from_exported_program(torch.export.export(model, (image,)), keep_params_as_input=False)
    from aap_hw.device import load_profile
    from aap_hw.device.connection import LocalDevice

    target = LocalDevice(load_profile("x86").model_copy(update={"threads": threads})).target.tvm
    machine = relax.VirtualMachine(tvm.compile(module, target=target), tvm.cpu())
    pixels = tvm.runtime.tensor(image.numpy())
    return lambda: machine["main"](pixels)[0].numpy()


OTHERS = {"torch": _torch_eager, "torch_compile": _torch_compile, "tvm_default": _tvm_default}


def _milliseconds(call: Call) -> float:
    """Mean time of calls for about a twentieth of a second, after one that warms the caches.

    Thread pools of whoever was called before go on spinning for a while, on the cores that this one needs.
    """
    time.sleep(SPINNING_S)
    call()
    began = time.perf_counter()
    count = 0
    while count == 0 or time.perf_counter() - began < SAMPLE_S:
        call()
        count += 1
    return (time.perf_counter() - began) / count * 1e3


if __name__ == "__main__":
    main()
