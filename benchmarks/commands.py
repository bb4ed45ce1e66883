"""How long the commands take as whole processes: a plan for MobileNetV2, and with --profile its whole latency table.

``cpu_s`` is the processor's time, which a busy machine changes less than ``seconds``.

Example: python benchmarks/commands.py --lut lut/x86.json --json -
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import print_report, say


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lut", default="lut/x86.json", help="table for the plan")
    parser.add_argument("--model", default="mobilenetv2")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="also measure a whole table anew")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--quick", action="store_true", help="one plan for a small network: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.model, options.runs = "resnet20", 1
    plan = ["plan", "--model", options.model, "--lut", options.lut, "--budget", "60%", "--json", "-"]
    if options.quick:
        plan += ["--calibration-images", "8"]
    rows = []
    for run in range(options.runs):
        seconds, cpu_s, output = _timed(plan)
        document = json.loads(output)
        rows.append(
            {
                "command": "plan",
                "run": run,
                "seconds": seconds,
                "cpu_s": cpu_s,
                "solver_s": document["solver_seconds"],
                "gap": document["gap"],
                "predicted_ms": document["predicted_ms"],
                "budget_ms": document["budget_ms"],
            }
        )
    summary: dict[str, object] = {"model": options.model, "plan_s": statistics.median(r["seconds"] for r in rows)}
    summary["plan_cpu_s"] = statistics.median(row["cpu_s"] for row in rows)
    if options.profile:
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "x86.json"
            # Compiled anew: what an earlier profile left in the cache would make this one as quick as you like.
            profile = ["profile", "--device", "x86", "--model", options.model, "--out", str(table), "--no-cache"]
            seconds, cpu_s, _ = _timed(profile)
            kernels = json.loads(table.read_text("utf-8"))["kernels"]
        points = sum(len(kernel["points"]) for kernel in kernels.values())
        rows.append({"command": "profile", "seconds": seconds, "cpu_s": cpu_s, "points": points})
        summary["profile_s"] = seconds
    print_report(rows, summary, options.json)


def _timed(arguments: list[str]) -> tuple[float, float, str]:
    """Seconds of the clock and of the processor, and what was printed."""
    say(f"aap-hw {' '.join(arguments)}")
    began, used = time.perf_counter(), _used_s()
    command = [sys.executable, "-m", "aap_hw.cli.main", *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - began, _used_s() - used, output


def _used_s() -> float:
    """Processor's time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
