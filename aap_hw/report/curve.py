"""A network's trade-off curve as a picture: latency against what is kept of the attention, budget by budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aap_hw.errors import UserError
from aap_hw.files import make_folder, write_atomic
from aap_hw.prune.curve import CurvePoint
from aap_hw.prune.sentences import how_known, quantity
from aap_hw.report.chart import KEPT, Chart, Page, View, axis
from aap_hw.report.page import html_of
from aap_hw.report.png import figure_of, is_png, png_of


def write_curve(points: Sequence[CurvePoint], out: Path) -> None:
    """Draw a curve, the unpruned network included, as an HTML page or a PNG file.

    Raises
    ------
    UserError : there is no plan to draw, or the file is neither HTML nor PNG or cannot be written.
    """
    plans = {str(point.budget): point.proposal for point in points if point.proposal is not None}
    if not plans:
        raise UserError("no budget can be kept, so there is no curve to draw")
    first = next(iter(plans.values()))
    drawn = [(budget, plan.plan.predicted_ms, 100 * plan.plan.kept_attention) for budget, plan in plans.items()]
    drawn = sorted([*drawn, ("unpruned", first.dense.dense_ms, 100.0)], key=lambda point: point[1])
    title = f"{first.model} on {first.device['name']}"
    provenance = first.device["provenance"]
    what = f"{quantity(provenance)}, ms, {how_known(False, provenance)}"
    notes = [] if first.estimate is None else [f"All times are {first.estimate.sentence()}."]
    make_folder(out.parent)
    if is_png(out):
        write_atomic(out, _png_of(title, what, drawn))
        return
    view = View(
        label="",
        summary="; ".join(f"{budget}: {ms:.4g} ms, {kept:.1f} % of the attention kept" for budget, ms, kept in drawn),
        traces=[
            {
                "type": "scatter", "mode": "lines+markers+text", "showlegend": False,
                "x": [ms for _, ms, _ in drawn], "y": [kept for *_, kept in drawn],
                "text": [budget for budget, *_ in drawn], "textposition": "bottom right",
                "hovertemplate": "%{text}<br>%{x:.4g} ms<br>%{y:.1f} % kept<extra></extra>",
                "line": {"color": KEPT, "width": 2}, "marker": {"color": KEPT, "size": 9},
            }
        ],
        layout={"xaxis": axis(what, rangemode="tozero"), "yaxis": axis("attention kept, %")},
        headings=("budget", "ms", "attention kept, %"),
        rows=drawn,
    )  # fmt: skip
    note = "Each point is the plan that keeps the most within its budget. Nothing was cut or trained."
    chart = Chart("curve", "What a budget leaves", note, [view], height=480)
    write_atomic(out, html_of(Page(title, "Trade-off curve", (), (), notes, [chart])))


def _png_of(title: str, what: str, drawn: Sequence[tuple[str, float, float]]) -> bytes:
    figure, axes = figure_of(1, 1, (7, 4.5))
    axes[0].plot([ms for _, ms, _ in drawn], [kept for *_, kept in drawn], "o-", linewidth=1.5)
    for budget, ms, kept in drawn:
        axes[0].annotate(budget, (ms, kept), xytext=(5, -12), textcoords="offset points", fontsize=8)
    axes[0].set(xlabel=what, ylabel="attention kept, %", title=title, xlim=(0, None))
    return png_of(figure)
