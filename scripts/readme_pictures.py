"""The picture at the top of README.md, light and dark, from stored runs of benchmarks/accuracy_latency.py.

On the left is what a kernel costs at each width, and which widths a plan gave the layers that run it, by the run with
the latest table. On the right is how accurate the networks of several methods are against their measured latency, by
the run that has measured them.

Example: python scripts/readme_pictures.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aap_hw.lut.file import load_table

DOCS = Path(__file__).parent.parent / "docs"
NETWORK, METHOD, BUDGET = "resnet56", "joint", 0.4
ACCURACIES = DOCS / "results" / "accuracy_latency"
STAIRS = ACCURACIES / "long"
# The first convolution of the blocks 1 to 8 of the last stage, which all run one kernel with 64 inputs, in int8.
KERNEL, WIDTH_IN = ("conv2d 8x8", "epilogue=bias+relu ", "kernel=3x3", "stride=1x1", "int8"), 64
LAYERS = tuple(f"layer3.{block}.conv1" for block in range(1, 9))
# Ours first; the others by how they are called in the table of results.
METHODS = {
    "exact": ("aap-hw", "o"),
    "torch_pruning": ("torch-pruning", "s"),
    "uniform": ("all widths alike", "^"),
    "threshold": ("published threshold", "v"),
}
# Text, grid, and the colours of the methods; on a transparent ground, as pages have their own.
THEMES = {
    "light": ("#1f2328", "#d1d9e0", ("#0969da", "#bc4c00", "#59636e", "#8250df")),
    "dark": ("#e6edf3", "#3d444d", ("#4493f8", "#f0883e", "#9198a1", "#ab7df8")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stairs", type=Path, default=STAIRS, help="the run on the left: its table and plans")
    parser.add_argument("--accuracies", type=Path, default=ACCURACIES, help="the run on the right: its results")
    parser.add_argument("--out", type=Path, default=DOCS / "images", help="folder of the two pictures")
    options = parser.parse_args()
    for theme in THEMES:
        path = options.out / f"overview-{theme}.svg"
        draw(options.stairs, options.accuracies, theme, path)
        print(path, file=sys.stderr)


def draw(stairs: Path, accuracies: Path, theme: str, path: Path) -> None:
    """Draw both panels into one SVG file."""
    ink, grid, colours = THEMES[theme]
    style = {
        "svg.hashsalt": "aap-hw",  # the same figures give the same file
        "font.size": 10,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": grid,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": grid,
        "grid.linewidth": 0.6,
    }
    with rc_context(style):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_stairs(left, stairs, ink, colours[0])
        draw_accuracies(right, json.loads((accuracies / "results.json").read_text())["rows"], ink, colours)
        figure.savefig(path, transparent=True, metadata={"Date": None})


def draw_stairs(panel: Axes, run: Path, ink: str, colour: str) -> None:
    """Latency of the kernel over its output width, and how many layers the plan gave each width."""
    table = load_table(run / "x86.json")
    (points,) = [rows for key, rows in table.points.items() if all(word in str(key) for word in KERNEL)]
    line = sorted((p.width_out, p.latency_us) for p in points.values() if p.width_in == WIDTH_IN)
    latency = dict(line)
    panel.plot(*zip(*line, strict=True), "-", color=ink, linewidth=1, marker="o", markersize=4)
    for width, layers in sorted(chosen_widths(run).items()):
        panel.plot(width, latency[width], "o", color=colour, markersize=9, zorder=3)
        words = f"{layers} layer{'s' if layers > 1 else ''}"
        panel.annotate(words, (width, latency[width]), (0, -16), textcoords="offset points", color=colour)
    panel.set(
        title="One kernel, measured at each width",
        xlabel=f"filters of a 3x3 convolution in int8 (blue: chosen for {BUDGET:.0%})",
        ylabel="µs on the device",
        xlim=(0, 70),
        ylim=(0, None),
    )
    panel.set_xticks(range(0, 65, 8))


def chosen_widths(run: Path) -> Counter[int]:
    """How many of the layers the plan left at each width; those that went with their branch are not counted."""
    for text in (run / "plan.jsonl").read_text().splitlines():
        row = json.loads(text)
        if (row["model"], row["method"], row["budget"]) == (NETWORK, METHOD, BUDGET):
            if row["precision"] != "int8" or set(LAYERS) & set(row["floats"]):
                raise SystemExit(f"{run} has these layers in float32, and the picture shows their kernel in int8")
            # A group that is not named keeps all its channels.
            kept = [len(row["kept"].get(layer, range(WIDTH_IN))) for layer in LAYERS]
            return Counter(width for width in kept if width)
    raise SystemExit(f"{run / 'plan.jsonl'} has no plan of {NETWORK} for {BUDGET:.0%}; run the benchmark first")


def draw_accuracies(panel: Axes, rows: list[dict[str, Any]], ink: str, colours: tuple[str, ...]) -> None:
    """Accuracy against measured latency, a line for each method, and the unpruned network."""
    of_network = [row for row in rows if row["model"] == NETWORK and row.get("measured_ms") is not None]
    (dense,) = [row for row in of_network if row["method"] == "unpruned"]
    for colour, (method, (name, marker)) in zip(colours, METHODS.items(), strict=True):
        line = sorted((row["measured_ms"], row["accuracy"]) for row in of_network if row["method"] == method)
        wide = 2 if method == "exact" else 1
        panel.plot(*zip(*line, strict=True), marker=marker, color=colour, linewidth=wide, label=name)
    panel.plot(dense["measured_ms"], dense["accuracy"], "*", color=ink, markersize=13, label="unpruned")
    panel.set(
        title="ResNet-56 on CIFAR-10, pruned and briefly trained",
        xlabel="measured latency, ms",
        ylabel="accuracy, %",
        xlim=(0, None),
    )
    panel.legend(frameon=False, loc="lower left", fontsize=9)


if __name__ == "__main__":
    main()
