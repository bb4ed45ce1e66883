"""Scores of the channels of each group, and where they were cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aap_hw.report.chart import CUT, INK, KEPT, Chart, View, axis, group_axis, list_height
from aap_hw.report.story import Attention, Story


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
    height = max(420, list_height(len(of_round)))
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
            "yaxis": group_axis([g.group for g in groups]),
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
    least = f", down to {min(group.scores[i] for i in group.kept):.4g}" if group.kept else ""
    shapes = []
    if kept < len(order):
        shapes = [
            {"type": "line", "x0": kept + 0.5, "x1": kept + 0.5, "yref": "paper", "y0": 0, "y1": 1,
             "line": {"color": INK, "width": 1, "dash": "dash"}}
        ]  # fmt: skip
    return View(
        label=f"{group.group}, round {group.round}",
        summary=f"{group.group}, round {group.round}: {kept} of {len(order)} channels kept{least}.",
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
