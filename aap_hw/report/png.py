"""Pictures as PNG, drawn by matplotlib without a display. What is in them is their callers' business."""

from __future__ import annotations

import io
import logging
from pathlib import Path

from aap_hw.errors import UserError


def is_png(out: Path) -> bool:
    """Whether a picture is to be a PNG file, and not an HTML page. Raises UserError if its name says neither."""
    if out.suffix.lower() not in (".png", ".html"):
        raise UserError(f"{out} is neither a .png nor an .html file; give it a name that ends in one of them")
    return out.suffix.lower() == ".png"


def figure_of(rows: int, columns: int, size: tuple[float, float]):  # type: ignore[no-untyped-def]
    """A figure of so many inches, and its axes, row by row."""
    # A home folder that it cannot write to is told at length, and is no matter here.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # Without pyplot, which wants a display and keeps every figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).flatten().tolist()


def png_of(figure) -> bytes:  # type: ignore[no-untyped-def]
    """The bytes of the file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
