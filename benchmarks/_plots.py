"""The plot of the accuracy benchmark: accuracy against measured latency, one panel a network, one line a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MARKERS = "osD^vXP<>h"


def accuracy_against_latency(rows: list[dict[str, Any]], labels: dict[str, str], path: Path) -> None:
    """Draw every row that was trained and measured; bars span the seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "aap-hw"
    from matplotlib import pyplot as plt

    drawn = [row for row in rows if row.get("accuracy") is not None and row.get("measured_ms") is not None]
    models = list(dict.fromkeys(row["model"] for row in drawn))
    if not models:
        raise SystemExit(f"no network was both trained and measured yet: {path} is not written")
    figure, panels = plt.subplots(1, len(models), figsize=(6.5 * len(models), 4.5), squeeze=False)
    drawings: dict[str, Any] = {}
    for model, panel in zip(models, panels[0], strict=True):
        of_model = [row for row in drawn if row["model"] == model]
        for row in of_model:
            if row["method"] == "unpruned":
                (drawings["unpruned"],) = panel.plot(row["measured_ms"], row["accuracy"], "k*", markersize=12)
        # By its place among all methods, so that a method looks the same in each panel.
        for place, (method, label) in enumerate(labels.items()):
            points = sorted((r for r in of_model if r["method"] == method), key=lambda r: r["measured_ms"])
            if not points:
                continue
            ms, accuracy = [p["measured_ms"] for p in points], [p["accuracy"] for p in points]
            low = [p["accuracy"] - p["lowest_accuracy"] for p in points]
            high = [p["highest_accuracy"] - p["accuracy"] for p in points]
            marker, colour = MARKERS[place % len(MARKERS)], f"C{place}"
            bars = panel.errorbar(ms, accuracy, yerr=[low, high], marker=marker, color=colour, capsize=3)
            drawings[label] = bars
        panel.set(title=model, xlabel="measured latency, ms (one image)", ylabel="accuracy on the test images, %")
        panel.grid(alpha=0.3)
    panels[0][0].legend(list(drawings.values()), list(drawings), fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
