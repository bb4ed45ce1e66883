"""What was given up for what was gained: accuracy against latency by round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aap_hw.report.chart import INK, SERIES, Chart, View, axis
from aap_hw.report.story import Story


def trade_chart(stories: Sequence[Story]) -> Chart:
    """Accuracy against latency by round; where nothing was trained, attention kept against latency."""
    trained = [story for story in stories if story.summary["retrained"]]
    what = "accuracy" if trained else "attention kept"
    traces: list[dict[str, Any]] = []
    rows: list[tuple[str | float | None, ...]] = []
    marks: set[tuple[str, bool]] = set()
    shapes, notes, sentences = [], [], []
    for number, story in enumerate(trained or stories):
        color, label = SERIES[number % len(SERIES)], story.name if len(stories) > 1 else "rounds"
        points = [_unpruned(story, bool(trained)), *_round_points(story, bool(trained))]
        name = f"{story.name}, " if len(stories) > 1 else ""
        marks |= {(p["how"], p["measured"]) for p in points}
        rows += [(f"{name}{p['label']}", p["ms"], p["how"], p["value"]) for p in points]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label,
                "x": [p["ms"] for p in points],
                "y": [p["value"] for p in points],
                "customdata": [[p["label"], p["how"]] for p in points],
                "hovertemplate": f"{name}%{{customdata[0]}}<br>%{{x:.4g}} ms %{{customdata[1]}}"
                f"<br>{what} %{{y:.2f}} %<extra></extra>",
                "line": {"color": color, "width": 2, "dash": "dot"},
                "marker": {
                    "color": color,
                    "size": [16 if p["chosen"] else 10 for p in points],
                    "symbol": [_symbol(p) for p in points],
                    "line": {"color": color, "width": 2},
                },
            }
        )
        latency, how = story.latency
        kept = next((p for p in points if p["chosen"]), points[-1])
        sentences.append(
            f"{name}unpruned {points[0]['ms']:.4g} ms {points[0]['how']} and {points[0]['value']:.2f} %, "
            f"pruned {latency:.4g} ms {how} and {kept['value']:.2f} %"
        )
        if (budget := story.summary.get("budget_ms")) is not None:
            shapes.append(
                {
                    "type": "line", "x0": budget, "x1": budget, "yref": "paper", "y0": 0, "y1": 1,
                    "line": {"color": color if len(stories) > 1 else INK, "width": 1, "dash": "dash"},
                }
            )  # fmt: skip
            if len(stories) == 1:
                notes.append(
                    {
                        "x": budget, "yref": "paper", "y": 1, "xanchor": "left", "yanchor": "bottom",
                        "showarrow": False, "text": f"budget {budget:.4g} ms",
                    }
                )  # fmt: skip
            sentences[-1] += f", budget {budget:.4g} ms"
    view = View(
        label="",
        summary="; ".join(sentences) + ".",
        traces=traces,
        layout={
            "xaxis": axis(" or ".join(sorted({each.quantity for each in stories})) + ", ms", rangemode="tozero"),
            "yaxis": axis(f"{what}, %"),
            "shapes": shapes,
            "annotations": notes,
            "showlegend": len(stories) > 1,
        },
        headings=("", "ms", "how it is known", f"{what}, %"),
        rows=rows,
    )
    known = " or ".join(sorted({how for how, is_filled in marks if is_filled}))
    hollow = " or ".join(sorted({how for how, is_filled in marks if not is_filled}))
    how = f"Filled marks are {known} latencies, hollow ones predicted" if known else f"All latencies are {hollow}"
    how += "; the star is the network that was kept."
    how += " Dashed lines are budgets." if len(stories) > 1 and shapes else ""
    return Chart("trade", f"{what.capitalize()} against latency", how, [view])


def _unpruned(story: Story, trained: bool) -> dict[str, Any]:
    ms, how = story.unpruned
    # Of the split that the rounds were judged by.
    accuracy = story.summary.get("accuracy_val_dense", story.summary["accuracy_dense"])
    return {
        "label": "unpruned",
        "ms": ms,
        "how": how,
        "value": accuracy if trained else 100.0,
        "measured": bool(story.summary["dense_is_measured"]),
        "chosen": False,
    }


def _round_points(story: Story, trained: bool) -> Iterable[dict[str, Any]]:
    for figures in story.rounds:
        value = figures.get("accuracy") if trained else 100 * figures["kept_attention"]
        if figures["predicted_ms"] is None or value is None:
            continue
        chosen, ms = figures["round"] == story.chosen, figures["measured_ms"]
        measured = ms is not None
        ms, how = ms if measured else figures["predicted_ms"], story.how(measured)
        if chosen and story.is_timed:
            measured, (ms, how) = True, story.latency
        yield {
            "label": f"round {figures['round']}" + (", kept" if chosen else ""),
            "ms": ms,
            "how": how,
            "value": value,
            "measured": measured,
            "chosen": chosen,
        }


def _symbol(point: Mapping[str, Any]) -> str:
    shape = "diamond" if point["label"] == "unpruned" else "star" if point["chosen"] else "circle"
    return shape if point["measured"] else f"{shape}-open"
