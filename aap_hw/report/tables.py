"""Latency tables as pictures: a page of stairs to choose from or of two tables against each other, or PNG files."""

from __future__ import annotations

from pathlib import Path

from aap_hw.device.description import MEASURED
from aap_hw.errors import UserError
from aap_hw.files import make_folder, write_atomic
from aap_hw.lut.comparing import Comparison
from aap_hw.lut.provenance import Estimate
from aap_hw.lut.table import LatencyTable
from aap_hw.report.chart import KEPT, MUTED, Chart, Page, View, axis
from aap_hw.report.charts.stairs import Use, axis_is_input, lines_of, stairs_chart
from aap_hw.report.page import html_of
from aap_hw.report.png import figure_of, is_png, png_of

# As many kernels as fit on a page of a PNG.
ON_A_PAGE = 12


def write_stairs(table: LatencyTable, matching: str, out: Path) -> int:
    """Draw the kernels whose key contains ``matching``, the slowest first; how many were drawn.

    Raises
    ------
    UserError : no kernel of several widths matches, or the file is neither HTML nor PNG or cannot be written.
    """
    uses = [Use(str(key), key) for key in table.points if matching in str(key)]
    chart = stairs_chart(table, uses)
    if chart is None:
        raise UserError(
            f"the table has no kernel of several widths whose key contains '{matching}'; see 'aap-hw lut show'"
        )
    make_folder(out.parent)
    if is_png(out):
        chosen = [view.label for view in chart.views[:ON_A_PAGE]]
        write_atomic(out, _png_of_stairs(table, [use for use in uses if use.name in chosen]))
        return len(chosen)
    device, estimate = table.device, Estimate.of(table)
    doubts = [f"These latencies are {device['provenance']}, not measured."] if device["provenance"] != MEASURED else []
    doubts += [f"Each is {estimate.sentence()}."] if estimate is not None else []
    page = Page(
        f"Latency table of {device['name']}",
        f"{device['cpu']}, {device['threads']} thread(s), {device['provenance']} {device['date']}",
        (),
        (),
        doubts,
        [chart],
    )
    write_atomic(out, html_of(page))
    return len(chart.views)


def write_comparison(names: tuple[str, str], comparison: Comparison, out: Path) -> None:
    """Draw two tables against each other.

    Raises
    ------
    UserError : they share no point, or the file is neither HTML nor PNG or cannot be written.
    """
    points = comparison.shared
    if not points:
        raise UserError(f"{names[0]} and {names[1]} have no point in common, so there is nothing to draw")
    make_folder(out.parent)
    if is_png(out):
        figure, axes = figure_of(1, 1, (7, 6))
        axes[0].loglog([p.first_us for p in points], [p.second_us for p in points], ".", markersize=4)
        ends = [min(p.first_us for p in points), max(p.first_us for p in points)]
        axes[0].loglog(ends, ends, color="0.6", linewidth=1)
        axes[0].set(xlabel=f"{names[0]}, µs", ylabel=f"{names[1]}, µs", title=f"{len(points)} points of both")
        write_atomic(out, png_of(figure))
        return
    ends = [min(p.first_us for p in points), max(p.first_us for p in points)]
    quantiles = comparison.quantiles()
    view = View(
        label="",
        summary=f"{len(points)} points of both; the second table over the first: median {quantiles['median']:.3f}, "
        f"nine in ten between {quantiles['p5']:.3f} and {quantiles['p95']:.3f}.",
        traces=[
            {"type": "scatter", "mode": "lines", "x": ends, "y": ends, "line": {"color": MUTED, "width": 1},
             "hoverinfo": "skip", "showlegend": False},
            {
                "type": "scatter",
                "mode": "markers",
                "x": [p.first_us for p in points],
                "y": [p.second_us for p in points],
                "customdata": [[str(p.address.key), p.address.width_in, p.address.width_out, p.ratio] for p in points],
                "hovertemplate": "%{customdata[0]}<br>%{customdata[1]} in, %{customdata[2]} out: %{x:.4g} and %{y:.4g} "
                "µs (%{customdata[3]:.3f})<extra></extra>",
                "marker": {"color": KEPT, "size": 6, "opacity": 0.6},
                "showlegend": False,
            },
        ],
        layout={"xaxis": axis(f"{names[0]}, µs", type="log"), "yaxis": axis(f"{names[1]}, µs", type="log")},
        headings=("kernel", "in", "out", "first, µs", "second, µs", "ratio"),
        rows=[
            (str(p.address.key), p.address.width_in, p.address.width_out, p.first_us, p.second_us, p.ratio)
            for p in comparison.farthest(len(points))
        ],
    )  # fmt: skip
    note = "Every point that both tables have; the farthest apart come first in the table."
    chart = Chart("tables", "Latency of a call", note, [view], height=560)
    facts = [(name, (str(ours), str(theirs))) for name, ours, theirs in comparison.facts]
    write_atomic(out, html_of(Page(f"{names[0]} against {names[1]}", "Two latency tables", names, facts, (), [chart])))


def _png_of_stairs(table: LatencyTable, uses: list[Use]) -> bytes:
    columns = min(3, len(uses))
    rows = -(-len(uses) // columns)
    figure, axes = figure_of(rows, columns, (5 * columns, 3.2 * rows))
    for place, use in zip(axes, uses, strict=False):
        points = list(table.points[use.key].values())
        over_input = axis_is_input(points)
        for name, line in lines_of(points).items():
            along = [p.width_in if over_input else p.width_out for p in line]
            place.plot(along, [p.latency_us for p in line], ".-", linewidth=1, markersize=4, label=name)
        words = str(use.key).split()
        half = len(words) // 2
        place.set_title(" ".join(words[:half]) + "\n" + " ".join(words[half:]), fontsize=7)
        place.set(xlabel="input width" if over_input else "output width", ylabel="µs", ylim=(0, None))
        place.legend(fontsize=6, frameon=False)
    for place in axes[len(uses) :]:
        place.set_axis_off()
    return png_of(figure)
