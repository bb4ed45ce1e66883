"""Which networks can be cut, and whether the result is right: torchvision's, timm's, transformers', deployed ones.

Every network is traced, all its free channel groups are cut to 60 %, and the cut network is compared, in float64, with
the exported program of the whole one, run without the channels that went (norms are taken over those that stay). It
must export again, and compile to what PyTorch computes, unless --no-compile leaves that out. ``cuttable_macs_pct``: of
the uncut network's multiply-accumulates, those in layers that make or read channels of a group that can be cut; a group
of which a kernel cannot follow the width counts as one that cannot.

Each runs in a process of its own; with --journal, rows that a file holds of the same settings and machine are not made
again (with --retry, those that are not ok are). Limits and ``seconds``, which are for trace and cut together, count the
processor's time, so that a busy machine changes no result. Weights are random and images small: neither matters to what
is compared. The deployed networks take inputs as large as people give them; those whose package is missing are skipped
by name.

    python benchmarks/coverage.py --set torchvision --models resnet18,shufflenet_v2_x1_0 --json -
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from _coverage_sets import NAMED, QUICK, SETS, network
from _isolated import append, in_its_own_process, journalled

LIMIT_S = 600
BESIDE_LIMIT_S = 120
ENOUGH = 95.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", default="torchvision", choices=SETS, help="which library's networks")
    parser.add_argument("--models", default="", help="only these, separated by commas")
    parser.add_argument("--json", help="write JSON to this file, or to standard output for -")
    parser.add_argument("--journal", type=Path, help="append each row to this file, and take from it those it has")
    parser.add_argument("--retry", action="store_true", help="make those rows of the journal again that are not ok")
    parser.add_argument("--limit", type=int, default=LIMIT_S, help="seconds of the processor that a network may take")
    parser.add_argument(
        "--beside", action="store_true", help="also cut each with torch-pruning, which must be installed"
    )
    parser.add_argument("--no-compile", action="store_true", help="stop when the cut network was exported again")
    parser.add_argument("--document", type=Path, help="write this file from the results beside it, and run nothing")
    parser.add_argument("--quick", action="store_true", help="one small network: does it run?")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TVM_NUM_THREADS", "1")
    if options.one:
        from _coverage_case import examine

        print(json.dumps(examine(options.set, options.one, to_compile=not options.no_compile)))
        return
    if options.document:
        from _coverage_document import write_document

        write_document(sorted(options.document.parent.glob("results/coverage_*.json")), options.document)
        return
    from _report import machine, print_report, say

    names = [name for name in options.models.split(",") if name] or list(SETS[options.set])
    if options.quick:
        names = [QUICK[options.set]]
    if options.set in NAMED and (unknown := {*names} - {*SETS[options.set]}):
        parser.error(f"there is no network {min(unknown)}; there are {', '.join(SETS[options.set])}")
    settings = {"set": options.set, "compile": not options.no_compile, "machine": machine()}
    done, rows, absent = journalled(options.journal, settings), [], []
    for name in names:
        if not network(options.set, name).is_installed:
            say(f"{name}: skipped, as {network(options.set, name).package} is not installed")
            absent.append(name)
            continue
        before = done.get(name, {})
        row = before
        if not before or (options.retry and before["status"] != "ok"):
            row = _examined(name, options)
        if options.beside:
            row = row | {"torch_pruning": before.get("torch_pruning") or _beside(options.set, name)}
        if row != before:
            append(options.journal, settings, row)
        rows.append(row)
        say(f"{name}: {row['status']}")
    print_report(rows, {**_summary(rows), "not_installed": ", ".join(absent)}, options.json)


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    shares = [row.get("cuttable_macs_pct", 0.0) for row in rows]
    summary: dict[str, Any] = {
        "networks": len(rows),
        "ok": sum(row["status"] == "ok" for row in rows),
        "silent_errors": sum(row["status"] == "wrong" for row in rows),
        "share_of_networks_with_95_pct": sum(share >= ENOUGH for share in shares) / len(rows) if rows else None,
        "median_macs_pct": statistics.median(shares) if rows else None,
        "slowest_s": max((row.get("seconds", 0.0) for row in rows), default=None),
    }
    if any("torch_pruning" in row for row in rows):
        summary["torch_pruning_ok"] = sum(row.get("torch_pruning") == "ok" for row in rows)
    return summary


def _examined(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of one network."""
    began = time.perf_counter()
    asked = ["--set", options.set, "--one", name, *(["--no-compile"] if options.no_compile else [])]
    done = in_its_own_process([__file__, *asked], options.limit)
    if isinstance(done, str):
        return {"model": name, "status": done, "total_s": time.perf_counter() - began}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**row, "total_s": time.perf_counter() - began}


def _beside(kind: str, name: str) -> str:
    """What torch-pruning makes of the network."""
    script = str(Path(__file__).parent / "_coverage_beside.py")
    done = in_its_own_process([script, kind, name], BESIDE_LIMIT_S)
    return done if isinstance(done, str) else "ok"


if __name__ == "__main__":
    main()
