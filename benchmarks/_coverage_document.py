"""docs/coverage.md, from the results of the coverage benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEAD = """# What can be cut

Made by `python benchmarks/coverage.py --document docs/coverage.md` from the results beside it; do not edit.

Each network is traced and every free channel group is cut to 60 % at random.

- **Prunable**: the share of the filters of convolutions and linear layers in groups that can be cut.
- **MACs that can go**: the share of the multiply-accumulates in layers that make or read channels of such a group.
- **MACs left**: what the cut leaves of all multiply-accumulates.
- **Difference**: that between the cut network and the whole one, run without those channels; a norm is taken over the
  channels that stay (float64, relative to the largest output).
- **Seconds**: the processor's for trace and cut.
- **Slow path**: the cut network is exported again and compiled, and its outputs are compared with PyTorch's. This
  counts the kernels that have no schedule and are lowered by TVM itself.
- **torch-pruning**: what version 1.6.1 makes of the same network. ok means that something was cut and the network still
  runs, not that it is right.
"""


def write_document(results: list[Path], destination: Path) -> None:
    """Write the document from result files that the benchmark made."""
    parts = [HEAD]
    for path in results:
        report = json.loads(path.read_text("utf-8"))
        rows, summary = report["rows"], report["summary"]
        parts.append(f"## {path.stem.removeprefix('coverage_')}\n")
        parts.append(
            f"{summary['ok']} of {summary['networks']} ok, {summary['silent_errors']} silent errors, "
            f"{summary['share_of_networks_with_95_pct']:.0%} with 95 % of the multiply-accumulates in groups that can "
            f"be cut (median {summary['median_macs_pct']:.1f} %), the slowest {summary['slowest_s']:.0f} s "
            f"([the run](results/{path.name}); {report['machine']['cpu']}).\n"
        )
        parts.append(
            "| network | input | groups | frozen | prunable | MACs that can go | MACs left | difference | seconds | "
            "slow path | | torch-pruning |"
        )
        parts.append("|---|---|---|---|---|---|---|---|---|---|---|---|")
        parts.extend(_line(row) for row in rows)
        parts.append("\nWhat stays frozen, and why (the network's last layer always does):\n")
        parts.extend(f"- {row['model']}: {reasons}" for row in rows if (reasons := _reasons(row)))
        parts.append("")
    destination.write_text("\n".join(parts), "utf-8")


def _line(row: dict[str, Any]) -> str:
    def shown(name: str, form: str) -> str:
        return format(row[name], form) if name in row else ""

    slow = str(row.get("slow_path", "")).partition(" ")[0]
    status = row["status"] if row["status"] == "ok" else f"{row['status']} {row.get('reason', '')}".strip()
    cells = [
        row["model"],
        row.get("input", ""),
        shown("groups", "d"),
        shown("frozen", "d"),
        shown("prunable_share", ".0%"),
        shown("cuttable_macs_pct", ".1f") + " %" * ("cuttable_macs_pct" in row),
        shown("achieved_macs", ".0%"),
        shown("max_error", ".0e"),
        shown("seconds", ".1f"),
        slow,
        status.replace("|", "/"),
        str(row.get("torch_pruning", "")).replace("|", "/"),
    ]
    return f"| {' | '.join(cells)} |"


def _reasons(row: dict[str, Any]) -> str:
    reasons = str(row.get("frozen_because", "")).split("; ")
    return "; ".join(reason for reason in reasons if "reaches the network's output" not in reason)
