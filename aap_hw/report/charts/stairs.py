"""Latency of a kernel over its widths, as a table knows it: measured points, lines between them, and widths in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.lut.table import LatencyPoint, LatencyTable, MissingKernelError
from aap_hw.prune.sentences import quantity
from aap_hw.report.chart import DENSE, KEPT, MUTED, Chart, View, axis

# More kernels make a page slow to open; the slowest matter.
MOST_KERNELS = 80
# Input widths of which a line is drawn; the points of the others are in the table below.
MOST_LINES = 6


@dataclass(frozen=True)
class Use:
    """A kernel in a network: its name there and its widths unpruned and pruned."""

    name: str
    key: KernelKey
    dense: tuple[int, ...] | None = None
    pruned: tuple[int, ...] | None = None


def stairs_chart(table: LatencyTable, uses: Sequence[Use]) -> Chart | None:
    """Kernels to choose from, the slowest first; None if all have one width only."""
    shown = [use for use in uses if len(table.points.get(use.key, {})) > 1]
    shown.sort(key=lambda use: -_slowest(table, use))
    if not shown:
        return None
    views = [_view(table, use) for use in shown[:MOST_KERNELS]]
    more = f" Of {len(shown)} kernels, the {MOST_KERNELS} slowest." if len(shown) > MOST_KERNELS else ""
    known = f"{table.device['provenance']} {'for' if table.is_estimated else 'on'} {table.device['name']}"
    return Chart(
        "stairs",
        "What each width of a kernel costs",
        f"Latency of one call on its own, {known}. Dots are points of the table, lines are interpolated between them; "
        f"the thick line is at the chosen input width.{more}",
        views,
        height=440,
        chooser="Kernel",
    )


def axis_is_input(points: Sequence[LatencyPoint]) -> bool:
    """Whether a kernel's latency is drawn over its input width: its output width is always the same."""
    return len({point.width_out for point in points}) == 1


def lines_of(points: Sequence[LatencyPoint]) -> dict[str, list[LatencyPoint]]:
    """Points that make a line, by what they have in common."""
    if axis_is_input(points):
        return {"points": sorted(points, key=lambda p: p.width_in)}
    columns: dict[int, list[LatencyPoint]] = {}
    for point in sorted(points, key=lambda p: (p.width_in, p.width_out)):
        columns.setdefault(point.width_in, []).append(point)
    if all(len(column) == 1 for column in columns.values()):
        return {"points": [column[0] for column in columns.values()]}
    full = [width for width, column in columns.items() if len(column) > 1]
    step = max(1, -(-len(full) // MOST_LINES))
    # From the widest down, so that the extremes are among them.
    chosen = sorted({*full[::-1][::step], *full[:1]})
    return {f"{width} in": columns[width] for width in chosen}


def _view(table: LatencyTable, use: Use) -> View:
    points = list(table.points[use.key].values())
    over_input = axis_is_input(points)
    traces: list[dict[str, Any]] = []
    lines = lines_of(points)
    for number, (name, line) in enumerate(lines.items(), start=1):
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": [_along(p.widths, over_input) for p in line],
                "y": [p.latency_us for p in line],
                "customdata": [[p.width_in, p.width_out, p.spread_us, p.samples] for p in line],
                "hovertemplate": "%{customdata[0]} in, %{customdata[1]} out: %{y:.4g} µs"
                "<br>spread %{customdata[2]:.2g} µs, %{customdata[3]} samples<extra></extra>",
                "line": {"color": MUTED, "width": 1},
                "marker": {"color": MUTED, "size": 5},
                "opacity": 0.35 + 0.65 * number / len(lines),
            }
        )
    sentences = [f"{use.key}, {len(points)} points"]
    if use.pruned is not None:
        traces.append(_chosen_line(table, use, points, over_input))
    for what, widths, color, symbol in (
        ("unpruned", use.dense, DENSE, "diamond"),
        ("chosen", use.pruned, KEPT, "star"),
    ):
        if widths is None:
            continue
        try:
            found = table.latency(Address(use.key, widths))
        except MissingKernelError:
            continue
        known = "interpolated" if found.interpolated else str(table.device["provenance"])
        sentences.append(f"{what} {widths[0]} in, {widths[-1]} out: {found.us:.4g} µs, {known}")
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": what,
                "x": [_along(widths, over_input)],
                "y": [found.us],
                "hovertemplate": f"{what}: {widths[0]} in, {widths[-1]} out<br>%{{y:.4g}} µs, {known}<extra></extra>",
                "marker": {"color": color, "size": 14, "symbol": symbol, "line": {"color": "--card", "width": 1}},
            }
        )
    return View(
        label=use.name,
        summary="; ".join(sentences) + ".",
        traces=traces,
        layout={
            "xaxis": axis(f"{'input' if over_input else 'output'} width, channels", rangemode="tozero"),
            "yaxis": axis(f"{quantity(table.device['provenance'])} of a call, µs", rangemode="tozero"),
        },
        headings=("in", "out", "µs", "spread, µs", "samples"),
        rows=[
            (p.width_in, p.width_out, p.latency_us, p.spread_us, p.samples)
            for p in sorted(points, key=lambda p: (p.width_in, p.width_out))
        ],
    )


def _chosen_line(table: LatencyTable, use: Use, points: Sequence[LatencyPoint], over_input: bool) -> dict[str, Any]:
    """Latency at the chosen width of the other side, over all measured widths of this one."""
    assert use.pruned is not None
    *first, last = use.pruned
    diagonal = len(points) > 1 and all(len(line) == 1 for line in _by_input(points).values()) and not over_input
    if diagonal:
        chosen = {p.widths for p in points}
    elif over_input:
        chosen = {(width, *use.pruned[1:]) for width in {use.pruned[0], *(p.width_in for p in points)}}
    else:
        chosen = {(*first, width) for width in {last, *(p.width_out for p in points)}}
    found = []
    for widths in sorted(chosen):
        try:
            found.append((widths, table.latency(Address(use.key, widths))))
        except MissingKernelError:
            continue
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "at the chosen width",
        "x": [_along(widths, over_input) for widths, _ in found],
        "y": [latency.us for _, latency in found],
        "customdata": [
            [widths[0], widths[-1], "interpolated" if latency.interpolated else "in the table"]
            for widths, latency in found
        ],
        "hovertemplate": "%{customdata[0]} in, %{customdata[1]} out: %{y:.4g} µs, %{customdata[2]}<extra></extra>",
        "line": {"color": KEPT, "width": 3},
        "marker": {
            "color": KEPT,
            "size": 7,
            "symbol": ["circle-open" if latency.interpolated else "circle" for _, latency in found],
        },
    }


def _by_input(points: Sequence[LatencyPoint]) -> dict[int, list[LatencyPoint]]:
    columns: dict[int, list[LatencyPoint]] = {}
    for point in points:
        columns.setdefault(point.width_in, []).append(point)
    return columns


def _along(widths: Sequence[int], over_input: bool) -> int:
    return widths[0 if over_input else -1]


def _slowest(table: LatencyTable, use: Use) -> float:
    points = table.points[use.key]
    return points[use.dense].latency_us if use.dense in points else max(p.latency_us for p in points.values())
