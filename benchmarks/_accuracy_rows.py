"""The accuracy benchmark's journals as rows of a table, and what they come to."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from _cells import Journal
from _methods import OURS
from _report import say


def report(journals: Mapping[str, Journal]) -> Iterator[dict[str, Any]]:
    """One flat row for each method at each budget, the unpruned networks first."""
    plans, trainings, timings = (journals[stage].rows for stage in ("plan", "train", "measure"))
    for model in dict.fromkeys(row["model"] for row in plans):
        unpruned = next((row for row in trainings if row["model"] == model and row["method"] == "dense"), None)
        timed = next((row for row in reversed(timings) if row["model"] == model), None)
        yield {
            "model": model,
            "budget_share": 1.0,
            "method": "unpruned",
            "accuracy": unpruned and unpruned["accuracy"],
            "measured_ms": timed and timed["dense_measured_ms"],
            "measured_share": 1.0,
        }
        alike = _trained_alike(trainings, model)
        cells = {(row["budget"], row["method"]): row for row in plans if row["model"] == model}
        for (budget, method), planned in sorted(cells.items(), key=lambda item: -item[0][0]):
            row = {"model": model, "budget_share": budget, "method": method, "reached": planned["kept"] is not None}
            if planned["kept"] is not None:
                same = what_of(planned)
                timed = next((each for each in reversed(timings) if same.items() <= each.items()), None)
                runs = {run["seed"]: run for run in alike if same.items() <= run.items()}
                found = [run["accuracy"] for run in runs.values()]
                row |= {
                    "accuracy": statistics.mean(found) if found else None,
                    "lowest_accuracy": min(found, default=None),
                    "highest_accuracy": max(found, default=None),
                    "seeds": len(found),
                    "epochs": max((run["epochs"] for run in runs.values()), default=None),
                    "precision": planned["precision"],
                    "predicted_ms": planned["predicted_ms"],
                    "predicted_share": planned["predicted_ms"] / planned["dense_ms"],
                    "measured_ms": timed and timed["measured_ms"],
                    "measured_share": timed and timed["measured_ms"] / timed["dense_measured_ms"],
                }
            yield row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How far the best of ours leads the best other at each budget, and what it loses; None if it is not known yet."""
    unpruned = {row["model"]: row["accuracy"] for row in rows if row["method"] == "unpruned"}
    reached = [row for row in rows if row["method"] != "unpruned" and row.get("accuracy") is not None]
    figures: dict[str, Any] = {"trained": len(reached), "reachable": sum(row.get("reached", False) for row in rows)}
    for model, share in dict.fromkeys((r["model"], r["budget_share"]) for r in rows if r["method"] != "unpruned"):
        at = [row for row in reached if (row["model"], row["budget_share"]) == (model, share)]
        ours = max((row["accuracy"] for row in at if row["method"] in OURS), default=None)
        others = max((row["accuracy"] for row in at if row["method"] not in OURS), default=None)
        name = f"{model}_{100 * share:.0f}pct"
        figures[f"lead_{name}"] = None if ours is None or others is None else ours - others
        figures[f"loss_{name}"] = None if ours is None or unpruned[model] is None else unpruned[model] - ours
    return figures


def _trained_alike(trainings: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """A model's trainings with the settings of the latest one; with others, methods would not be compared fairly."""
    trained = [row for row in trainings if row["model"] == model and row["method"] != "dense"]
    # An uncut network is not trained, and has none.
    latest = next((row["settings"] for row in reversed(trained) if row["settings"] is not None), None)
    alike = [row for row in trained if row["settings"] in (None, latest)]
    if len(alike) < len(trained):
        say(f"{model}: {len(trained) - len(alike)} trainings are left out, as later ones have other settings")
    return alike


def what_of(planned: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two networks the same."""
    return {name: planned[name] for name in ("model", "kept", "precision", "floats")}
