"""The charts of runs: accuracy against latency, widths, predictions, attention, and how the time was spent.

Pure: stories in, charts out. Stairs of a kernel are in ``aap_hw.report.stairs``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from aap_hw.compile.kernel import KernelKey
from aap_hw.lut.fidelity import is_random, table_error
from aap_hw.report.chart import CUT, DENSE, INK, KEPT, MUTED, SERIES, Chart, View, axis
from aap_hw.report.stairs import Use, stairs_chart
from aap_hw.report.story import Attention, Group, Story

# Predictions within this share of what was measured lie in the band.
BAND = 0.05


def charts_of(story: Story) -> list[Chart]:
    """Every chart of one run."""
    uses = [
        Use(
            f"{layer}: {dense.latency_us:.4g} → {pruned.latency_us:.4g} µs",
            KernelKey.parse(dense.key),
            (dense.width_in, dense.width_out),
            (pruned.width_in, pruned.width_out),
        )
        for layer, dense, pruned in story.kernels
    ]
    found = [
        trade_chart([story]),
        widths_chart(story),
        stairs_chart(story.table, uses),
        predictions_chart([story]),
        attention_chart(story),
        time_chart([story]),
    ]
    return [chart for chart in found if chart is not None]


def comparison_of(stories: Sequence[Story]) -> list[Chart]:
    """The charts that several runs share."""
    found = [trade_chart(stories), shares_chart(stories), predictions_chart(stories), time_chart(stories)]
    return [chart for chart in found if chart is not None]


def trade_chart(stories: Sequence[Story]) -> Chart:
    """Accuracy against latency by round; where nothing was trained, attention kept against latency."""
    trained = [story for story in stories if story.summary["retrained"]]
    what, unit = ("accuracy", " %") if trained else ("attention kept", " %")
    traces: list[dict[str, Any]] = []
    rows: list[tuple[str | float | None, ...]] = []
    shapes, notes, sentences = [], [], []
    for number, story in enumerate(trained or stories):
        color, label = SERIES[number % len(SERIES)], story.name if len(stories) > 1 else "rounds"
        points = [_unpruned(story, bool(trained)), *_round_points(story, bool(trained))]
        name = f"{story.name}, " if len(stories) > 1 else ""
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
                f"<br>{what} %{{y:.2f}}{unit}<extra></extra>",
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
            f"{name}unpruned {points[0]['ms']:.4g} ms and {points[0]['value']:.2f}{unit}, "
            f"pruned {latency:.4g} ms {how} and {kept['value']:.2f}{unit}"
        )
        if (budget := story.summary.get("budget_ms")) is not None:
            shapes.append(
                {
                    "type": "line", "x0": budget, "x1": budget, "yref": "paper", "y0": 0, "y1": 1,
                    "line": {"color": color if len(stories) > 1 else INK, "width": 1, "dash": "dash"},
                }
            )  # fmt: skip
            notes.append(
                {
                    "x": budget, "yref": "paper", "y": 1, "xanchor": "left", "yanchor": "bottom", "showarrow": False,
                    "text": f"budget {budget:.4g} ms" if len(stories) == 1 else "budget",
                }
            )  # fmt: skip
            sentences[-1] += f", budget {budget:.4g} ms"
    view = View(
        label="",
        summary="; ".join(sentences) + ".",
        traces=traces,
        layout={
            "xaxis": axis("latency, ms", rangemode="tozero"),
            "yaxis": axis(f"{what}, %"),
            "shapes": shapes,
            "annotations": notes,
            "showlegend": len(stories) > 1,
        },
        headings=("", "ms", "how it is known", f"{what}, %"),
        rows=rows,
    )
    how = "Filled marks are measured latencies, hollow ones predicted; the star is the network that was kept."
    return Chart("trade", f"{what.capitalize()} against latency", how, [view])


def _unpruned(story: Story, trained: bool) -> dict[str, Any]:
    measured = bool(story.summary["dense_is_measured"])
    return {
        "label": "unpruned",
        "ms": story.summary["dense_ms"],
        "how": story.how(measured) if measured else story.how(False),
        "value": story.summary["accuracy_dense"] if trained else 100.0,
        "measured": measured,
        "chosen": False,
    }


def _round_points(story: Story, trained: bool) -> Iterable[dict[str, Any]]:
    for figures in story.rounds:
        value = figures.get("accuracy") if trained else 100 * figures["kept_attention"]
        if figures["predicted_ms"] is None or value is None:
            continue
        chosen, ms = figures["round"] == story.chosen, figures["measured_ms"]
        measured = ms is not None
        ms = ms if measured else figures["predicted_ms"]
        if chosen and story.summary.get("pruned_ms") is not None:
            ms, measured = story.summary["pruned_ms"], True
        yield {
            "label": f"round {figures['round']}" + (", kept" if chosen else ""),
            "ms": ms,
            "how": story.how(measured),
            "value": value,
            "measured": measured,
            "chosen": chosen,
        }


def _symbol(point: Mapping[str, Any]) -> str:
    shape = "diamond" if point["label"] == "unpruned" else "star" if point["chosen"] else "circle"
    return shape if point["measured"] else f"{shape}-open"


def widths_chart(story: Story) -> Chart:
    """Width of every group before and after."""
    names = [group.name for group in story.groups]
    frozen = [group for group in story.groups if group.frozen]
    notes = [f"{g.kept} of {g.width} kept ({g.kept / g.width:.0%}){_frozen_text(g)}" for g in story.groups]
    common = {"type": "bar", "orientation": "h", "y": names, "customdata": notes}
    hover = "%{y}<br>%{customdata}<extra></extra>"
    kept, total = sum(g.kept for g in story.groups), sum(g.width for g in story.groups)
    view = View(
        label="",
        summary=f"{len(names)} channel groups, {len(frozen)} of them frozen; {kept:,} of {total:,} channels kept.",
        traces=[
            {**common, "name": "unpruned", "x": [g.width for g in story.groups], "hovertemplate": hover, "width": 0.8,
             "marker": {"color": DENSE, "opacity": 0.45}},
            *(
                {**common, "name": name, "x": [g.kept if bool(g.frozen) == is_frozen else None for g in story.groups],
                 "hovertemplate": hover, "width": 0.5, "marker": {"color": color}}
                for name, is_frozen, color in (("kept", False, KEPT), ("frozen", True, MUTED))
            ),
        ],
        layout={
            "barmode": "overlay",
            "xaxis": axis("channels", rangemode="tozero"),
            "yaxis": {"autorange": "reversed", "automargin": True, "tickmode": "array", "tickvals": names,
                      "ticktext": [_short(name) for name in names]},
        },
        headings=("group", "unpruned", "kept", "share", "frozen because"),
        rows=[(g.name, g.width, g.kept, f"{g.kept / g.width:.0%}", g.frozen or "") for g in story.groups],
    )  # fmt: skip
    note = "Channels of each group before and after. Grey groups are frozen: what they are cut with is not understood."
    return Chart("widths", "Widths before and after", note, [view], height=_list_height(len(names)))


def shares_chart(stories: Sequence[Story]) -> Chart | None:
    """Share of every group that several runs kept; None if they are of networks with other groups."""
    names = [group.name for group in stories[0].groups if not group.frozen]
    if any({group.name for group in story.groups if not group.frozen} != set(names) for story in stories):
        return None
    traces = []
    shares = []
    for number, story in enumerate(stories):
        by_name = {group.name: group for group in story.groups}
        shares.append([by_name[name].kept / by_name[name].width for name in names])
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": story.name,
                "x": [100 * share for share in shares[-1]],
                "y": names,
                "customdata": [[by_name[name].kept, by_name[name].width] for name in names],
                "hovertemplate": f"%{{y}}, {story.name}<br>%{{customdata[0]}} of %{{customdata[1]}} kept "
                "(%{x:.0f} %)<extra></extra>",
                "marker": {
                    "color": SERIES[number % len(SERIES)],
                    "size": 12,
                    "symbol": ("circle", "diamond", "square", "cross", "triangle-up", "x")[number % 6],
                    "opacity": 0.85,
                },
            }
        )
    means = [f"{story.name} {100 * float(np.mean(share)):.0f} %" for story, share in zip(stories, shares, strict=True)]
    view = View(
        label="",
        summary=f"Mean share of channels kept over {len(names)} groups: {', '.join(means)}.",
        traces=traces,
        layout={
            "xaxis": axis("channels kept, %", range=[0, 104]),
            "yaxis": {"autorange": "reversed", "automargin": True, "tickmode": "array", "tickvals": names,
                      "ticktext": [_short(name) for name in names]},
            "showlegend": True,
        },
        headings=("group", *(f"{story.name}, %" for story in stories)),
        rows=[(name, *(round(100 * share[i], 1) for share in shares)) for i, name in enumerate(names)],
    )  # fmt: skip
    return Chart("shares", "What each run kept", "Share of each group's channels.", [view], _list_height(len(names)))


def predictions_chart(stories: Sequence[Story]) -> Chart | None:
    """Predicted against measured latency of whole networks; None if none was measured."""
    traces, rows, sentences, extent = [], [], [], []
    for number, story in enumerate(stories):
        name = f"{story.name}, " if len(stories) > 1 else ""
        color = SERIES[number % len(SERIES)]
        model, shape = story.summary["model"], (1, *story.summary["input"])
        held = [v for v in story.table.validation if (v.model, v.input) == (model, shape)]
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
                    "customdata": [[plan, 100 * (p / m - 1)] for plan, p, m in plans],
                    "hovertemplate": f"{name}%{{customdata[0]}}<br>predicted %{{x:.4g}} ms, measured %{{y:.4g}} ms "
                    "(%{customdata[1]:+.1f} %)<extra></extra>",
                    "marker": {"color": color if mine else DENSE, "size": 13 if mine else 8,
                               "symbol": "star" if mine else symbol},
                }
            )  # fmt: skip
        if plans := _measured_plans(story):
            worst = max(abs(p / m - 1) for _, p, m in plans)
            count = f"{len(plans)} plan{'s' if len(plans) > 1 else ''}"
            sentences.append(f"{name}{count} of the run measured, predictions off by at most {worst:.1%}")
        if (error := table_error(story.table, model, shape)) is not None:
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
        layout={"xaxis": axis("predicted, ms"), "yaxis": axis("measured, ms"), "showlegend": True},
        headings=("network", "predicted, ms", "measured, ms", "error"),
        rows=rows,
    )
    emulated = sorted({story.provenance for story in stories} - {"measured"})
    note = "Whole networks: what the table said, and what they took." + (
        f" Latencies called measured are {' and '.join(emulated)} ones." if emulated else ""
    )
    return Chart("predictions", "Predicted against measured", note, [view])


def _measured_plans(story: Story) -> list[tuple[str, float, float]]:
    found = []
    for event in story.events:
        if event["event"] == "measured":
            found.append((f"plan tried, attempt {event['attempt']}", event["predicted_ms"], event["measured_ms"]))
    kept = story.summary["predicted_ms"], story.summary.get("pruned_ms")
    if kept[1] is not None and kept not in [plan[1:] for plan in found]:
        found.append(("pruned network, as deployed or kept", *kept))
    return [plan for plan in found if plan[1] and plan[2]]


def attention_chart(story: Story) -> Chart | None:
    """Scores of each group's channels, and which were cut; None if nothing is known of them."""
    score = story.summary.get("score", "attention")
    of_round = [each for each in story.attention if each.round == story.chosen]
    others = [each for each in story.attention if each.round != story.chosen]
    if not of_round:
        return None
    views = [_overview(of_round), *(_channels(each, score) for each in (*of_round, *others))]
    note = (
        f"Score ({score}) of every channel when the round began, and the cut: how many stay is chosen by latency, "
        "which ones by score."
    )
    height = max(420, _list_height(len(of_round)))
    return Chart("attention", "Attention and the cut", note, views, height, chooser="Group")


def _overview(groups: Sequence[Attention]) -> View:
    traces: list[dict[str, Any]] = []
    rows: list[tuple[str | float | None, ...]] = []
    for kind, color in (("kept", KEPT), ("cut", CUT)):
        boxes: dict[str, list[Any]] = {"y": [], "lowerfence": [], "q1": [], "median": [], "q3": [], "upperfence": []}
        for group in groups:
            relative = np.array(group.scores) / (np.mean(group.scores) or 1)
            some = relative[[i for i in range(len(relative)) if (i in group.kept) == (kind == "kept")]]
            if not some.size:
                continue
            quartiles = np.percentile(some, [0, 25, 50, 75, 100]).round(4).tolist()
            for name, value in zip(boxes, (group.group, *quartiles), strict=True):
                boxes[name].append(value)
            rows.append((group.group, kind, int(some.size), *quartiles))
        traces.append(
            {"type": "box", "orientation": "h", "name": kind, **boxes, "line": {"color": color, "width": 1.5},
             "hoverinfo": "x+y+name"}
        )  # fmt: skip
    number = groups[0].round
    channels = sum(len(g.scores) for g in groups)
    cut = channels - sum(len(g.kept) for g in groups)
    return View(
        label=f"All groups, round {number}",
        summary=f"Round {number} cut {cut:,} of {channels:,} channels of {len(groups)} groups.",
        traces=traces,
        layout={
            "boxmode": "group",
            "xaxis": axis("score, as a multiple of the group's mean", type="log", dtick="D2"),
            "yaxis": {"autorange": "reversed", "automargin": True, "tickmode": "array",
                      "tickvals": [g.group for g in groups], "ticktext": [_short(g.group) for g in groups]},
            "showlegend": True,
        },
        headings=("group", "channels", "number", "least", "quarter", "median", "three quarters", "most"),
        rows=rows,
    )  # fmt: skip


def _channels(group: Attention, score: str) -> View:
    order = sorted(range(len(group.scores)), key=lambda i: (i not in group.kept, -group.scores[i]))
    kept = len(group.kept)
    traces = []
    for kind, color, start, stop in (("kept", KEPT, 0, kept), ("cut", CUT, kept, len(order))):
        some = order[start:stop]
        traces.append(
            {
                "type": "bar",
                "name": kind,
                "x": list(range(start + 1, stop + 1)),
                "y": [group.scores[i] for i in some],
                "customdata": some,
                "hovertemplate": f"channel %{{customdata}}: %{{y:.4g}}, {kind}<extra></extra>",
                "marker": {"color": color},
            }
        )
    least = min((group.scores[i] for i in group.kept), default=math.nan)
    shapes = []
    if kept < len(order):
        shapes = [
            {"type": "line", "x0": kept + 0.5, "x1": kept + 0.5, "yref": "paper", "y0": 0, "y1": 1,
             "line": {"color": INK, "width": 1, "dash": "dash"}}
        ]  # fmt: skip
    return View(
        label=f"{group.group}, round {group.round}",
        summary=f"{group.group}, round {group.round}: {kept} of {len(order)} channels kept, down to {least:.4g}.",
        traces=traces,
        layout={
            "bargap": 0.1,
            "xaxis": axis("channels, sorted"),
            "yaxis": axis(score, rangemode="tozero"),
            "shapes": shapes,
            "showlegend": True,
        },
        headings=("channel", "score", ""),
        rows=[(i, group.scores[i], "kept" if i in group.kept else "cut") for i in order],
    )


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
        rows += [(f"{name}{_LANES.get(e['event'], e['event'])}", round(minute, 2), _told(e)) for minute, e in moments]
        lanes.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": story.name,
                "x": [minute for minute, _ in moments],
                "y": [_LANES.get(e["event"], e["event"]) for _, e in moments],
                "customdata": [_told(e) for _, e in moments],
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
                        "customdata": [_told(event) for _, event in epochs],
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
    "measured": "plan measured",
    "epoch": "epoch",
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


def _told(event: Mapping[str, Any]) -> str:
    match event["event"]:
        case "start":
            return f"unpruned {event['dense_ms']:.4g} ms"
        case "cut":
            latency = event["measured_ms"]
            how = "predicted" if latency is None else "measured"
            return f"round {event['round']}: {latency or event['predicted_ms']:.4g} ms {how}"
        case "measured":
            return f"predicted {event['predicted_ms']:.4g} ms, measured {event['measured_ms']:.4g} ms"
        case "epoch":
            accuracy = event["accuracy"]
            return f"epoch {event['epoch']} of {event['epochs']}: loss {event['loss']:.4f}, accuracy {accuracy:.2f} %"
        case "round":
            accuracy = event.get("accuracy")
            return f"round {event['round']}" + ("" if accuracy is None else f": accuracy {accuracy:.2f} %")
    return ""


def _frozen_text(group: Group) -> str:
    return f"<br>frozen: {_wrapped(group.frozen)}" if group.frozen else ""


def _list_height(rows: int) -> int:
    return 110 + 20 * rows


def _short(name: str, longest: int = 26) -> str:
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


def _wrapped(text: str, width: int = 60) -> str:
    words, lines = text.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(lines)
