"""``aap-hw plan``: the widths that ``prune`` would choose, without cutting anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aap_hw.cli.options import DEFAULT_MODEL, budget_option, build_model, input_option, lut_option
from aap_hw.cli.output import json_option, write_json

if TYPE_CHECKING:
    from aap_hw.policy import Budget
    from aap_hw.prune.planning import Plan
    from aap_hw.prune.rounds import Baseline


@click.command(epilog="\b\nExample:\n  aap-hw plan --model mobilenetv2 --lut lut/x86.json --budget 60%")
@click.option(
    "--model",
    "model_name",
    default=DEFAULT_MODEL,
    metavar="NAME",
    show_default=True,
    help="Network to prune.",
)
@lut_option
@budget_option
@input_option
@click.option("--weights", metavar="NAME", help="'embedded' for resnet20; default: untrained.")
@click.option(
    "--calibration-images",
    default=64,
    show_default=True,
    type=click.IntRange(min=1),
    help="Images for attention.",
)
@json_option
def command(
    model_name: str,
    lut_path: str,
    budget: Budget,
    input_size: tuple[int, ...] | None,
    weights: str | None,
    calibration_images: int,
    json_to: str | None,
) -> None:
    """Show how wide each channel group would be, what the table predicts and how much attention is kept."""
    from aap_hw.lut.file import load_table
    from aap_hw.prune.rounds import PruneSettings, Task, plan_once
    from aap_hw.prune.run import Origin
    from aap_hw.train.data import load_embedded

    table = load_table(Path(lut_path))
    model = build_model(model_name, input_size, weights)
    task = Task(Origin(model.name, weights, model.input_shape), table, load_embedded())
    dense, plan = plan_once(task, budget, PruneSettings(calibration_images=calibration_images))
    document = plan_document(dense, plan, budget, table.device)
    if json_to is not None:
        write_json(document, json_to)
    else:
        _print(document)


def plan_document(dense: Baseline, plan: Plan, budget: Budget, device: dict[str, Any]) -> dict[str, Any]:
    """A plan as JSON values."""
    return {
        "device": device["name"],
        "provenance": device["provenance"],
        "dense_ms": dense.dense_ms,
        "dense_is_measured": dense.measured,
        "budget_ms": budget.milliseconds(dense.dense_ms),
        "predicted_ms": plan.predicted_ms,
        "calibration": dense.planner.calibration,
        "kept_attention": plan.kept_attention,
        "gap": plan.gap,
        "solver_seconds": plan.seconds,
        "interpolated_kernels": sum(row.interpolated for row in plan.kernels),
        "groups": [
            {"name": g.name, "width": g.width, "kept": plan.widths[g.name], "frozen": g.frozen}
            for g in dense.graph.groups
        ],
        "kernels": [
            {
                "kernel": row.key,
                "width_in": row.width_in,
                "width_out": row.width_out,
                "latency_us": row.latency_us,
                "interpolated": row.interpolated,
            }
            for row in plan.kernels
        ],
    }


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    grid = Table(box=None, pad_edge=False)
    for heading in ("channel group", "width", "kept", ""):
        grid.add_column(heading, justify="right" if heading in ("width", "kept") else "left", overflow="fold")
    for group in document["groups"]:
        note = f"frozen: {group['frozen']}" if group["frozen"] else ""
        grid.add_row(group["name"], str(group["width"]), str(group["kept"]), note)
    console.print(grid)
    how = "measured" if document["dense_is_measured"] else "predicted"
    console.print(
        f"{document['device']} ({document['provenance']} table): unpruned {document['dense_ms']:.3f} ms ({how}), "
        f"budget {document['budget_ms']:.3f} ms, predicted {document['predicted_ms']:.3f} ms, "
        f"attention kept {document['kept_attention']:.1%}",
        soft_wrap=True,
    )
    if document["interpolated_kernels"]:
        console.print(f"{document['interpolated_kernels']} kernels are interpolated between measured widths")
