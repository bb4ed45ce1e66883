"""How the time of runs was spent: every event, and loss and accuracy by epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aap_hw.compile.keys.precision import INT8, in_precision
from aap_hw.report.chart import SERIES, Chart, View, axis
from aap_hw.report.story import Story


def time_chart(stories: Sequence[Story]) -> Chart | None:
    """What happened when; None if the runs logged nothing."""
    several = len(stories) > 1
    lanes: list[dict[str, Any]] = []
    accuracy: list[dict[str, Any]] = []
    loss: list[dict[str, Any]] = []
    rows: list[tuple[str, float, str]] = []
    for number, story in enumerate(stories):
        color = SERIES[number % len(SERIES)]
        moments = list(_moments(story))
        epochs = [(minute, event) for minute, event in moments if event["event"] == "epoch"]
        name = f"{story.name}, " if several else ""
        rows += [
            (f"{name}{_LANES.get(e['event'], e['event'])}", round(minute, 2), _told(e, story)) for minute, e in moments
        ]
        lanes.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": story.name,
                "x": [minute for minute, _ in moments],
                "y": [_LANES.get(e["event"], e["event"]) for _, e in moments],
                "customdata": [_told(e, story) for _, e in moments],
                "hovertemplate": f"{name}minute %{{x:.1f}}<br>%{{customdata}}<extra></extra>",
                "marker": {"color": color, "size": 11, "symbol": "line-ns", "line": {"color": color, "width": 3}},
            }
        )
        for lines, figure in ((accuracy, "accuracy"), (loss, "loss")):
            if epochs:
                lines.append(
                    {
                        "type": "scatter",
                        "mode": "lines+markers",
                        "name": story.name,
                        "x": [minute for minute, _ in epochs],
                        "y": [event[figure] for _, event in epochs],
                        "customdata": [_told(event, story) for _, event in epochs],
                        "hovertemplate": f"{name}minute %{{x:.1f}}<br>%{{customdata}}<extra></extra>",
                        "line": {"color": color, "width": 2},
                        "marker": {"color": color, "size": 7},
                    }
                )
    if not rows:
        return None
    last = max(row[1] for row in rows)
    views = [
        View(
            label=label,
            summary=f"{label}: {len(rows)} events in {last:.1f} minutes of work.",
            traces=traces,
            layout={"xaxis": axis("minutes of work", rangemode="tozero"), "yaxis": yaxis, "showlegend": several},
            headings=("event", "minute", ""),
            rows=rows,
        )
        for label, traces, yaxis in (
            ("Accuracy by epoch", accuracy, axis("accuracy, %")),
            ("Loss by epoch", loss, axis("training loss")),
            ("All events", lanes, {"categoryorder": "array", "categoryarray": [*_LANES.values()][::-1]}),
        )
        if traces
    ]  # fmt: skip
    note = "Since the run began; what passed between an interruption and its end is left out."
    return Chart("time", "Time line", note, views, chooser="Show")


_LANES = {
    "start": "begun",
    "cut": "cut",
    "measured": "plan tried",
    "waiting": "waiting",
    "epoch": "epoch",
    "quantised": "rounded",
    "round": "round done",
    "resumed": "resumed",
}


def _moments(story: Story) -> Iterable[tuple[float, Mapping[str, Any]]]:
    """Each event with its minute of work."""
    worked, before = 0.0, None
    for event in story.events:
        if before is not None and event["event"] != "resumed":
            worked += max(0.0, event["time"] - before)
        before = event["time"]
        yield worked / 60, event


def _told(event: Mapping[str, Any], story: Story) -> str:
    match event["event"]:
        case "start":
            return f"unpruned {event['dense_ms']:.4g} ms {story.how(event['dense_is_measured'])}"
        case "cut":
            latency = event["measured_ms"]
            how = story.how(latency is not None)
            return f"round {event['round']}: {latency or event['predicted_ms']:.4g} ms {how}"
        case "measured":
            return f"predicted {event['predicted_ms']:.4g} ms, {story.how(True)} {event['measured_ms']:.4g} ms"
        case "epoch":
            accuracy = event["accuracy"]
            return f"epoch {event['epoch']} of {event['epochs']}: loss {event['loss']:.4f}, accuracy {accuracy:.2f} %"
        case "quantised":
            accuracy, in_float32 = event["accuracy"], event["accuracy_float"]
            computed = in_precision(event.get("precision", INT8))
            return f"round {event['round']}{computed}: accuracy {accuracy:.2f} %, in float32 {in_float32:.2f} %"
        case "tested":
            accuracy, unpruned = event["accuracy_pruned"], event["accuracy_dense"]
            return f"on the test split: accuracy {accuracy:.2f} %, unpruned {unpruned:.2f} %"
        case "round":
            accuracy = event.get("accuracy")
            return f"round {event['round']}" + ("" if accuracy is None else f": accuracy {accuracy:.2f} %")
        case "waiting":
            return str(event["reason"])
    return ""
