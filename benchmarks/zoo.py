"""Networks that people deploy, unpruned, beside the better of ONNX Runtime and OpenVINO; and what of them is slow.

fp32. The engines take turns in one process, a network in each; ``ratio`` is the median over turns of our time over that
of the quicker one. ``slow_kernels`` have no schedule of ours, ``slow_share`` is their share of our time. Networks whose
package is missing are skipped by name: ``pip install 'aap-hw[zoo]'`` brings all but ultralytics, which wants
``pip install --no-deps ultralytics ultralytics-thop``. With --journal, rows that a file holds of the same settings and
machine are not made again. A network that does not compute what PyTorch does is ``wrong``, and not timed.

    python benchmarks/zoo.py --set deployed --models m5,fsrcnn --json -
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from _isolated import append, in_its_own_process, journalled

TURNS = 15
LIMIT_S = 900
CALLS = 10
PEERS = ("onnxruntime", "openvino")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", default="deployed", choices=("deployed",), help="which networks")
    parser.add_argument("--models", default="", help="only these, separated by commas")
    parser.add_argument("--threads", type=int, default=1, help="of every engine")
    parser.add_argument("--turns", type=int, default=TURNS, help="how often each engine takes its turn")
    parser.add_argument("--limit", type=int, default=LIMIT_S, help="seconds of the processor that a network may take")
    parser.add_argument("--journal", type=Path, help="append each row to this file, and take from it those it has")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="a small network and few turns: does it run?")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["TVM_NUM_THREADS"] = str(options.threads)
    if options.one:
        print(json.dumps(_row(options.set, options.one, options.threads, options.turns)))
        return
    from _deployed_set import QUICK, SETS
    from _report import machine, print_report, say

    names = [name for name in options.models.split(",") if name] or list(SETS[options.set])
    if options.quick:
        names, options.turns = list(QUICK), 3
    if unknown := {*names} - SETS[options.set].keys():
        parser.error(f"there is no network {min(unknown)}; there are {', '.join(SETS[options.set])}")
    settings = {"set": options.set, "threads": options.threads, "turns": options.turns, "machine": machine()}
    done, rows, absent = journalled(options.journal, settings), [], []
    for name in names:
        if not SETS[options.set][name].is_installed:
            say(f"{name}: skipped, as {SETS[options.set][name].package} is not installed")
            absent.append(name)
            continue
        row = done.get(name) or _in_a_process(name, options)
        if name not in done:
            append(options.journal, settings, row)
        rows.append(row)
        say(f"{name}: {row['status']}" + (f", ratio {row['ratio']:.2f}" if "ratio" in row else ""))
    print_report(rows, {**_summary(rows), "not_installed": ", ".join(absent)}, options.json)


def _in_a_process(name: str, options: argparse.Namespace) -> dict[str, Any]:
    asked = ["--set", options.set, "--one", name, "--threads", str(options.threads), "--turns", str(options.turns)]
    done = in_its_own_process([__file__, *asked], options.limit)
    if isinstance(done, str):
        return {"model": name, "status": done}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    compared, compiled = [r for r in rows if "ratio" in r], [r for r in rows if "slow_share" in r]
    checked = [row for row in rows if "relative_difference" in row]
    return {
        "networks": len(rows),
        "refused": sum(row["status"] not in ("ok", "wrong") for row in rows),
        "wrong": sum(row["status"] == "wrong" for row in rows),
        "compared": len(compared),
        "geomean_ratio": statistics.geometric_mean(row["ratio"] for row in compared) if compared else None,
        "worst_ratio": max((row["ratio"] for row in compared), default=None),
        "worst_slow_share": max((row["slow_share"] for row in compiled), default=None),
        "without_slow_kernels": sum(row["slow_kernels"] == 0 for row in compiled),
        "worst_relative_difference": max((row["relative_difference"] for row in checked), default=None),
    }


def _row(kind: str, name: str, threads: int, turns: int) -> dict[str, Any]:
    """The row of one network; what an engine refuses is said in it."""
    import warnings

    import torch
    from _deployed_set import SETS
    from _liven import enliven

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    found = SETS[kind][name]
    model, inputs = found.build().eval(), tuple(torch.rand(1, *shape) for shape in found.shapes)
    enliven(model, tuple(torch.rand(2, *shape) for shape in found.shapes))
    row = {"model": name, "input": ",".join("x".join(map(str, shape)) for shape in found.shapes), "threads": threads}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        return row | _compared(model, inputs, threads, turns, Path(folder))


def _compared(model: Any, inputs: Any, threads: int, turns: int, folder: Path) -> dict[str, Any]:
    import time

    import numpy as np
    from _coverage_case import COMPILED
    from _engines import ENGINES, kernel_times, milliseconds

    from aap_hw.compile.families.slow import LIBRARIES
    from aap_hw.graph.program.outputs import output_tensors

    began = time.perf_counter()
    try:
        calls = {"ours": ENGINES["ours"](model, inputs, threads, folder)}
    except Exception as problem:
        return {"status": f"refused: {str(problem).strip().splitlines()[0][:200]}"}
    row: dict[str, Any] = {"status": "ok", "compile_s": time.perf_counter() - began}
    expected = [each.numpy() for each in output_tensors(model(*inputs))]
    row["relative_difference"] = max(
        float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in zip(calls["ours"](), expected, strict=True)
    )
    if not row["relative_difference"] <= COMPILED:
        return {**row, "status": "wrong"}
    times = kernel_times(folder / "ours.so", inputs, CALLS)
    slow = {
        each: took for each, took in times.items() if each.startswith(tuple(f"{library}_" for library in LIBRARIES))
    }
    longest = sorted(slow, key=lambda each: -slow[each])[:3]
    row |= {
        "slow_kernels": len(slow),
        "slow_share": sum(slow.values()) / sum(times.values()),
        "slowest_of_them": ", ".join(f"{each} {slow[each] / sum(times.values()):.2f}" for each in longest),
    }
    for peer in PEERS:
        try:
            calls[peer] = ENGINES[peer](model, inputs, threads, folder)
            calls[peer]()
        except Exception as problem:
            calls.pop(peer, None)
            row[f"{peer}_problem"] = f"{type(problem).__name__}: {str(problem).strip().splitlines()[0][:200]}"
    samples: dict[str, list[float]] = {one: [] for one in calls}
    for _ in range(turns):
        for one, call in calls.items():
            samples[one].append(milliseconds(call))
    medians = {one: statistics.median(each) for one, each in samples.items()}
    row |= {f"{one}_ms": each for one, each in medians.items()}
    if best := min((one for one in calls if one != "ours"), key=lambda one: medians[one], default=None):
        row["ratio"] = statistics.median(a / b for a, b in zip(samples["ours"], samples[best], strict=True))
    return row


if __name__ == "__main__":
    main()
