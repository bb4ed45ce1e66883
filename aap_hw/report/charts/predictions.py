"""Predicted against measured latency of whole networks: those of the run, and those that tried the table."""

from __future__ import annotations

from collections.abc import Sequence

from aap_hw.device.description import MEASURED
from aap_hw.lut.fidelity import is_random, table_error
from aap_hw.report.chart import DENSE, MUTED, SERIES, Chart, View, axis
from aap_hw.report.story import Story

# Predictions within this share of what was measured lie in the band.
BAND = 0.05


def predictions_chart(stories: Sequence[Story]) -> Chart | None:
    """Predicted against measured latency of whole networks; None if none was measured."""
    traces, rows, sentences, extent = [], [], [], []
    # A time that no device took is never called measured.
    known = " or ".join(sorted({story.how(True) for story in stories}))
    for number, story in enumerate(stories):
        name = f"{story.name}, " if len(stories) > 1 else ""
        color = SERIES[number % len(SERIES)]
        network = story.network_name
        held = [v for v in story.table.validation if v.network == network]
        kinds = {
            "random plans": [(v.plan, v.predicted_us / 1e3, v.measured_us / 1e3) for v in held if is_random(v)],
            "plans that calibrated the table": [
                (v.plan, v.predicted_us / 1e3, v.measured_us / 1e3) for v in held if not is_random(v)
            ],
            "this run": _measured_plans(story),
        }
        if len(stories) > 1:
            kinds = {story.name: kinds["this run"]}
        for (kind, plans), symbol in zip(kinds.items(), ("circle", "circle-open", "star"), strict=False):
            if not plans:
                continue
            mine = kind == "this run" or len(stories) > 1
            rows += [(f"{name}{plan}", p, m, f"{p / m - 1:+.1%}") for plan, p, m in plans]
            extent += [ms for _, p, m in plans for ms in (p, m)]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": kind,
                    "x": [p for _, p, _ in plans],
                    "y": [m for _, _, m in plans],
                    # A format that begins with a sign is none of Plotly's.
                    "customdata": [[plan, f"{p / m - 1:+.1%}"] for plan, p, m in plans],
                    "hovertemplate": f"{name}%{{customdata[0]}}<br>predicted %{{x:.4g}} ms, {story.how(True)} "
                    "%{y:.4g} ms (%{customdata[1]})<extra></extra>",
                    "marker": {"color": color if mine else DENSE, "size": 13 if mine else 8,
                               "symbol": "star" if mine else symbol},
                }
            )  # fmt: skip
        if plans := _measured_plans(story):
            worst = max(abs(p / m - 1) for _, p, m in plans)
            count = f"{len(plans)} plan{'s' if len(plans) > 1 else ''}"
            sentences.append(f"{name}{count} of the run {story.how(True)}, predictions off by at most {worst:.1%}")
        if (error := table_error(story.table, network.model, network.inputs, network.precision)) is not None:
            sentences.append(f"{name}{error.sentence()}{error.order()}")
    if not rows:
        return None
    low, high = 0.95 * min(extent), 1.05 * max(extent)
    band = {
        "type": "scatter",
        "mode": "lines",
        "name": f"within {BAND:.0%}",
        "x": [low, high, high, low],
        "y": [low * (1 - BAND), high * (1 - BAND), high * (1 + BAND), low * (1 + BAND)],
        "fill": "toself",
        "fillcolor": "--band",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    line = {
        "type": "scatter", "mode": "lines", "x": [low, high], "y": [low, high], "showlegend": False,
        "line": {"color": MUTED, "width": 1}, "hoverinfo": "skip",
    }  # fmt: skip
    view = View(
        label="",
        summary="; ".join(sentences or [f"{len(rows)} networks"]) + ".",
        traces=[band, line, *traces],
        layout={"xaxis": axis("predicted, ms"), "yaxis": axis(f"{known}, ms"), "showlegend": True},
        headings=("network", "predicted, ms", f"{known}, ms", "error"),
        rows=rows,
    )
    note = "Whole networks: what the table said, and what they took."
    return Chart("predictions", f"Predicted against {known}", note, [view])


def _measured_plans(story: Story) -> list[tuple[str, float, float]]:
    found = []
    for event in story.events:
        if event["event"] == "measured":
            found.append((f"plan tried, attempt {event['attempt']}", event["predicted_ms"], event["measured_ms"]))
    kept = story.summary["predicted_ms"], story.summary.get("pruned_ms")
    # What a table of another machine says was no prediction of this one.
    if story.is_timed and story.provenance == MEASURED and kept not in [plan[1:] for plan in found]:
        found.append(("pruned network, as deployed or kept", *kept))
    return [plan for plan in found if plan[1] and plan[2]]
