"""docs/coverage.md, from the results of the coverage benchmark."""

from __future__ import annotations

import json
import re
import statistics
import textwrap
from pathlib import Path
from typing import Any

HEAD = """# What can be cut

How much of a network can be pruned, and is the result right? Tried with networks that people deploy and with those of
torchvision, timm and transformers. Each is traced, and every channel group that can be cut is cut to 60 % of its
channels, chosen at random. The cut network must then compute what the whole one does without the channels that went
(float64; a norm is taken over the channels that stay).
"""
COLUMNS = """
- **MACs that can go**: the share of the multiply-accumulates (MACs) in layers that make or read channels of a group
  that can be cut.
- **MACs left**: what the cut leaves of all multiply-accumulates. Where both sides of a layer are cut it is 36 %.
- **Groups**: the network's channel groups, and how many of them are **frozen**: they must not be cut. The last layer's
  always is, as outputs have a meaning.
- **Filters**: the share of the filters of convolutions and linear layers in groups that can be cut.
- **Difference**: between the cut network and the whole one, relative to the largest output.
- **Seconds**: the processor's, to trace and to cut.
- **Slow path**: kernels of the cut network, compiled, that have no schedule of ours and are lowered by TVM itself. A
  network is **ok** if the compiled one also computes what PyTorch does; some runs leave the compiling out and say so.
- **torch-pruning**: what its version 1.6.1 makes of the same network. ok means that something was cut and the network
  still runs, not that it is right.
"""
MADE = "Made by `python benchmarks/coverage.py --document docs/coverage.md` from the results beside it; do not edit.\n"
# In this order; sets that are not named come last.
TITLES = {
    "deployed": "Networks that people deploy",
    "torchvision": "torchvision",
    "timm": "timm",
    "transformers": "transformers",
}
ABOUT = {
    "deployed": "Detectors as ultralytics exports them and before their boxes are decoded, segmentation, poses, "
    "super-resolution, sound, text lines, clips and attention, with inputs of the sizes that people use. Weights are "
    "random, which matters to none of the figures.",
    "torchvision": "All of its classifiers, three of its segmentation networks and the backbone of a detector, on "
    "small images.",
    "timm": "One or two networks of each of many families, on small images.",
    "transformers": "Architectures of Hugging Face's library, version 5.24, in small: images, text and sound. What can "
    "be cut depends on how their code is written, not on how wide and deep they are.",
}
ENOUGH = 95.0
# Percent of the multiply-accumulates that are worth a word.
LEAST = 0.2


def write_document(results: list[Path], destination: Path) -> None:
    """Write the document from result files that the benchmark made."""
    named = {path.stem.removeprefix("coverage_"): path for path in results}
    names = sorted(named, key=lambda name: (list(TITLES).index(name) if name in TITLES else len(TITLES), name))
    reports = {name: json.loads(named[name].read_text("utf-8")) for name in names}
    parts = [HEAD]
    parts.append("| set | networks | silently wrong | ok | 95 % of the MACs can go | MACs that can go, median |")
    parts.append("|---|---|---|---|---|---|")
    parts += [_overview(name, report["rows"]) for name, report in reports.items()]
    parts.append(COLUMNS)
    for name, report in reports.items():
        parts += _section(name, report, named[name])
    parts.append(MADE)
    destination.write_text("\n".join(parts), "utf-8")


def _title(name: str) -> str:
    return TITLES.get(name, name)


def _anchor(name: str) -> str:
    return _title(name).lower().replace(" ", "-")


def _overview(name: str, rows: list[dict[str, Any]]) -> str:
    # As in the summary: a network that fails before they are counted has none that can go.
    shares = [row.get("cuttable_macs_pct", 0.0) for row in rows]
    cells = [
        f"[{_title(name)}](#{_anchor(name)})",
        str(len(rows)),
        str(sum(row["status"] == "wrong" for row in rows)),
        str(sum(row["status"] == "ok" for row in rows)),
        f"{sum(share >= ENOUGH for share in shares)} of {len(rows)}",
        f"{statistics.median(shares):.1f} %" if shares else "",
    ]
    return f"| {' | '.join(cells)} |"


def _section(name: str, report: dict[str, Any], path: Path) -> list[str]:
    rows, summary = report["rows"], report["summary"]
    has_peer = any("torch_pruning" in row for row in rows)
    columns = ["network", "input", "MACs that can go", "MACs left", "groups", "frozen", "filters", "difference"]
    columns += ["seconds", "slow path", ""] + ["torch-pruning"] * has_peer
    about = f"{ABOUT[name]} " if name in ABOUT else ""
    lines = [
        f"## {_title(name)}\n",
        textwrap.fill(
            f"{about}The slowest takes {summary['slowest_s']:.0f} s ([the run](results/{path.name}); "
            f"{report['machine']['cpu']}).",
            120,
            break_long_words=False,
        )
        + "\n",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(_cells(row, has_peer))} |" for row in rows),
    ]
    below = [row for row in rows if row.get("cuttable_macs_pct", ENOUGH) < ENOUGH]
    if below:
        lines.append(
            "\nWhere less than 95 % can go, the shares that cannot and what is in the way of their channels:\n"
        )
        lines += [f"- {row['model']}: {_reasons(row)}" for row in below]
    others = [(row, told) for row in rows if row not in below and (told := _reasons(row))]
    if others:
        lines.append("\nThe same for the others:\n")
        lines += [f"- {row['model']}: {told}" for row, told in others]
    return [*lines, ""]


def _cells(row: dict[str, Any], has_peer: bool) -> list[str]:
    def shown(name: str, form: str) -> str:
        return format(row[name], form) if name in row else ""

    status = f"{row['status']} {row.get('reason', '')}".strip()
    if status == "ok" and not row.get("compiled"):
        status = "ok, not compiled"
    cells = [
        row["model"],
        row.get("input", ""),
        shown("cuttable_macs_pct", ".1f") + " %" * ("cuttable_macs_pct" in row),
        shown("achieved_macs", ".0%").replace("%", " %"),
        shown("groups", "d"),
        shown("frozen", "d"),
        shown("prunable_share", ".0%").replace("%", " %"),
        shown("max_error", ".0e"),
        shown("seconds", ".1f"),
        str(row.get("slow_path", "")).partition(" ")[0],
        status.replace("|", "/"),
    ]
    return cells + [str(row.get("torch_pruning", "")).replace("|", "/")] * has_peer


def _reasons(row: dict[str, Any]) -> str:
    """Why multiply-accumulates cannot go, the largest shares first; blocks that are alike count together."""
    shares: dict[str, float] = {}
    for told in filter(None, str(row.get("frozen_macs_because", "")).split("; ")):
        share, _, reason = told.partition("% ")
        reason = re.sub(r"(?<=[.'])\d+(?=[.'])", "*", reason)
        shares[reason] = shares.get(reason, 0.0) + float(share)
    most = sorted(shares.items(), key=lambda each: -each[1])
    return "; ".join(f"{share:.1f} % {reason}" for reason, share in most if share >= LEAST)
