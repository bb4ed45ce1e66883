"""What several runs kept of each channel group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aap_hw.report.chart import SERIES, Chart, View, axis, group_axis, list_height
from aap_hw.report.story import Story


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
                # A mark at 0 % would be cut in half.
                "cliponaxis": False,
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
            "yaxis": group_axis(names),
            "showlegend": True,
        },
        headings=("group", *(f"{story.name}, %" for story in stories)),
        rows=[(name, *(round(100 * share[i], 1) for share in shares)) for i, name in enumerate(names)],
    )  # fmt: skip
    return Chart("shares", "What each run kept", "Share of each group's channels.", [view], list_height(len(names)))
