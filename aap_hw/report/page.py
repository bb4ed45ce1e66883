"""A page as one HTML file that needs nothing else: plotly.js, the figures' data and the style are inside.

Its content security policy forbids to load anything.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jinja2
import plotly.offline
from markupsafe import Markup

from aap_hw import __version__
from aap_hw.report.chart import Page


def html_of(page: Page) -> str:
    """The text of the file."""
    template = jinja2.Environment(autoescape=True, trim_blocks=False).from_string(
        resources.files("aap_hw.report").joinpath("page.html").read_text("utf-8")
    )
    return template.render(
        page=page,
        version=__version__,
        charts=_inside_script(json.dumps([chart.as_json() for chart in page.charts], default=_plain, allow_nan=False)),
        plotly=Markup(plotly.offline.get_plotlyjs()),
    )


def _inside_script(text: str) -> Any:
    # Whatever a group or folder is called, it does not end the script.
    return Markup(text.replace("<", "\\u003c"))


def _plain(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no place in a chart")
