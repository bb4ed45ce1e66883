"""A chart of a report: what plotly.js draws, what a screen reader reads, and the numbers as a table.

Colours are names of the page's own (``--kept``, ``--dense``, ...), which it replaces by those of its theme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | None

KEPT, CUT, DENSE, MUTED, INK = "--kept", "--cut", "--dense", "--muted", "--ink"
# Of runs that are compared, in this order.
SERIES = ("--kept", "--cut", "--good", "--dense", "--extra", "--ink")


@dataclass(frozen=True)
class View:
    """One picture of a chart.

    Attributes
    ----------
    label : what a reader chooses it by, where there are several.
    summary : the picture in a sentence.
    traces, layout : for plotly.js.
    headings, rows : its numbers.
    """

    label: str
    summary: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Chart:
    """A titled picture, or several to choose from; ``note`` says how to read it."""

    id: str
    title: str
    note: str
    views: Sequence[View]
    height: int = 380
    chooser: str = ""

    def as_json(self) -> dict[str, Any]:
        """What the page's script needs."""
        views = [
            {
                "label": view.label,
                "summary": view.summary,
                "traces": view.traces,
                "layout": view.layout,
                "headings": view.headings,
                "rows": view.rows,
            }
            for view in self.views
        ]
        return {"id": self.id, "height": self.height, "views": views}


@dataclass(frozen=True)
class Page:
    """All that one HTML file shows.

    Attributes
    ----------
    facts : rows of the table at the top, a name and a cell for each of ``columns``.
    notes : sentences that a reader must not miss.
    """

    title: str
    subtitle: str
    columns: Sequence[str]
    facts: Sequence[tuple[str, Sequence[str]]]
    notes: Sequence[str]
    charts: Sequence[Chart]
    footer: Sequence[str] = field(default_factory=tuple)


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a title."""
    return {"title": {"text": title, "standoff": 12}, "automargin": True, **more}


def group_axis(names: Sequence[str]) -> dict[str, Any]:
    """A vertical axis of channel groups, the first on top."""
    return {
        "autorange": "reversed",
        "automargin": True,
        "tickmode": "array",
        "tickvals": names,
        "ticktext": [_short(name) for name in names],
    }


def list_height(rows: int) -> int:
    """Height of a chart with so many groups, in pixels."""
    return 110 + 20 * rows


def _short(name: str, longest: int = 26) -> str:
    return name if len(name) <= longest else f"…{name[1 - longest :]}"
