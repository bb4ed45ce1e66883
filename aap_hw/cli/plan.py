"""``aap-hw plan``: the widths that ``prune`` would choose, without cutting anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aap_hw.cli.options.budgets import curve_options
from aap_hw.cli.options.cuts import cut_options
from aap_hw.cli.options.images import data_options
from aap_hw.cli.options.network import model_option_of, network_options
from aap_hw.cli.options.precision import planned_precision_option
from aap_hw.cli.options.table import lut_option_of, read_table_to_predict, unmeasured_options
from aap_hw.cli.options.typed import retyped
from aap_hw.cli.output import json_option, tell, write_json
from aap_hw.cli.streams import results_alone
from aap_hw.compile.keys.precision import MIXTURES
from aap_hw.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aap_hw.compile.keys.precision import NetworkPrecision
    from aap_hw.prune.curve import CurvePoint
    from aap_hw.train.sources import ImageSource

# The bar of all the attention, in a table on a terminal.
BAR, BARS = "▇", 16


@click.command(
    epilog="\b\nExamples:\n  aap-hw plan --model mobilenetv2 --lut lut/x86.json --budget 60%\n"
    "  aap-hw plan --model mobilenetv2 --lut lut/x86.json --budget 20%,40%,60%,80% --plot curve.html"
)
@model_option_of(required=True)
@lut_option_of(required=True)
@curve_options
@network_options
@data_options
@cut_options
@planned_precision_option
@unmeasured_options
@click.option("--plot", metavar="PICTURE", help="Draw the curve of several budgets: an .html or .png file.")
@json_option
@click.pass_context
@results_alone
def command(
    ctx: click.Context,
    model_name: str,
    lut_path: str,
    budgets: dict[str, Any],
    network: dict[str, Any],
    source: ImageSource | None,
    cuts: dict[str, Any],
    precision: NetworkPrecision,
    unmeasured: dict[str, Any],
    plot: str | None,
    json_to: str | None,
) -> None:
    """Show what 'prune' would choose: the width of each channel group, the predicted latency, the attention kept.

    Nothing is cut or trained. Several budgets give the trade-off curve.
    """
    from aap_hw import api
    from aap_hw.prune.task import PruneSettings

    is_curve = isinstance(budgets["budget"], tuple)
    if plot is not None:
        _check_plot(plot, is_curve)
    how: dict[str, Any] = {**network, **unmeasured, "data": source}
    how["settings"] = PruneSettings(**cuts, precision=precision)
    table = read_table_to_predict(lut_path, model_name, precision)
    if is_curve:
        _show_curve(api.plan_curve(model_name, table, budgets.pop("budget"), **budgets, **how), plot, json_to)
        return
    document = api.plan(model_name, table, **budgets, **how).as_json()
    if json_to is not None:
        write_json(document, json_to)
        return
    _print(document)
    from aap_hw.cli.prune import command as prune

    tell(f"next: aap-hw prune {retyped(ctx, prune)}")


def _check_plot(plot: str, is_curve: bool) -> None:
    """Refuse, before any work, a picture that could not be drawn."""
    from aap_hw.files import require_writable_file
    from aap_hw.report.png import is_png

    if not is_curve:
        raise UserError("--plot draws the curve of several budgets; give some, such as --budget 20%,40%,60%,80%")
    is_png(Path(plot))
    require_writable_file(plot)


def _show_curve(points: Sequence[CurvePoint], plot: str | None, json_to: str | None) -> None:
    if plot is not None:
        from aap_hw.report.curve import write_curve

        write_curve(points, Path(plot))
    if json_to is not None:
        write_json([point.as_json() for point in points], json_to)
        return
    _print_curve(points)
    if plot is not None:
        tell(f"{plot}: the curve as a picture")


def _print_curve(points: Sequence[CurvePoint]) -> None:
    from aap_hw.cli.console import PlainConsole, grid_of
    from aap_hw.compile.keys.precision import in_precision
    from aap_hw.prune.sentences import MADE_UP, error_text, how_known, time_text

    console = PlainConsole()
    first = next(point.proposal for point in points if point.proposal is not None)
    provenance = first.device["provenance"]
    known = "predicted" if provenance == "measured" else provenance
    figures = "budget", f"{known} ms", "speed-up", "parameters", "attention kept"
    grid = grid_of(*figures, "", right=figures)
    for point in points:
        if (proposal := point.proposal) is None:
            grid.add_row(str(point.budget), "met unpruned" if point.met_unpruned else "no plan", "", "", "", "")
            continue
        plan, takes = proposal.plan, proposal.dense.takes
        kept = plan.kept_attention
        grid.add_row(
            str(point.budget),
            f"{plan.predicted_ms:.3f}",
            f"{proposal.dense.dense_ms / plan.predicted_ms:.2f}x",
            f"{plan.spent['parameters'] / takes['parameters']:.0%}",
            f"{kept:.1%}",
            BAR * round(BARS * kept),
        )
    console.print(grid)
    for point in points:
        if point.refusal:
            console.say(f"{point.budget}: {point.refusal}")
    doubt = "" if provenance == "measured" else f"; all are {how_known(False, provenance)}"
    error = None if first.error is None else first.error.as_json()
    console.say(
        f"{first.device['name']} ({provenance} table){in_precision(first.precision)}: unpruned "
        f"{time_text(first.dense.dense_ms, first.dense.measured, provenance)}{error_text(error)}{doubt}"
    )
    if first.estimate is not None:
        console.say(first.estimate.sentence())
    if first.made_up:
        console.say(MADE_UP)
    console.say("for the widths behind a point, ask for its budget alone")


def _print(document: dict[str, Any]) -> None:
    from aap_hw.cli.console import PlainConsole, grid_of
    from aap_hw.compile.keys.precision import in_precision
    from aap_hw.prune.sentences import (
        MADE_UP,
        constraints_sentence,
        error_text,
        estimate_sentence,
        how_known,
        slow_sentence,
        time_text,
    )

    console = PlainConsole()
    is_mixed = document["precision"] in MIXTURES
    grid = grid_of("channel group", "kind", "width", "kept", *(["in"] if is_mixed else []), "", right=("width", "kept"))
    for group in document["groups"]:
        note = f"frozen: {group['frozen']}" if group["frozen"] else "" if group["kept"] else "branch removed"
        if group["renormalised"] and group["kept"] < group["width"]:
            note = note or f"renormalised: {group['renormalised']}"
        in_what = [(group["kept"] and group["precision"]) or ""] if is_mixed else []
        grid.add_row(group["name"], group["kind"], str(group["width"]), str(group["kept"]), *in_what, note)
    for name, precision in document.get("others_in", {}).items():
        grid.add_row(name, "", "", "", precision, "")
    console.print(grid)
    for path, reason in document["heads_left"].items():
        console.say(f"the heads of '{path}' stay, and their widths may be cut: it {reason}")
    provenance = document["provenance"]
    dense = time_text(document["dense_ms"], document["dense_is_measured"], provenance)
    doubt = "" if provenance == "measured" else f" ({how_known(False, provenance)})"
    budget = "" if document["budget_ms"] is None else f"budget {document['budget_ms']:.3f} ms, "
    console.say(
        f"{document['device']} ({provenance} table){in_precision(document['precision'])}: unpruned {dense}, "
        f"{budget}predicted {document['predicted_ms']:.3f} ms{doubt}"
        f"{error_text(document['table_error'])}, "
        f"{document['kept_attention']:.1%} of the attention kept"
    )
    if sentence := estimate_sentence(document):
        console.say(sentence)
    console.say(constraints_sentence(document["constraints"], provenance))
    if document["made_up_inputs"]:
        console.say(MADE_UP)
    if document["slow_path"]:
        console.say(slow_sentence(document["slow_path"], document["slow_share"]))
    if count := document["interpolated_kernels"]:
        are = "latency is" if count == 1 else "latencies are"
        console.say(f"{count} {are} interpolated between measured widths")
