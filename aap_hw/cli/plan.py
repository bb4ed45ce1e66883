"""``aap-hw plan``: the widths that ``prune`` would choose, without cutting anything."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from aap_hw.cli.options import (
    allocator_options,
    budget_options,
    budget_text,
    calibration_option,
    classes_option,
    data_options,
    depth_option,
    emulated_option,
    input_option,
    input_text,
    lut_option,
    model_option,
    only_option,
    read_table,
    score_option,
    score_scale_option,
    skip_option,
    weights_of,
    weights_option,
)
from aap_hw.cli.output import json_option, write_json

if TYPE_CHECKING:
    from aap_hw.lut.fidelity import Fidelity
    from aap_hw.policy import Budget
    from aap_hw.prune.baseline import Baseline
    from aap_hw.prune.planning import Plan
    from aap_hw.train.sources import ImageSource


@click.command(epilog="\b\nExample:\n  aap-hw plan --model mobilenetv2 --lut lut/x86.json --budget 60%")
@model_option
@lut_option
@budget_options
@input_option
@data_options
@weights_option
@classes_option
@calibration_option
@score_option
@score_scale_option
@allocator_options
@only_option
@skip_option
@depth_option
@emulated_option
@json_option
def command(
    model_name: str,
    lut_path: str,
    budgets: list[Budget],
    input_size: tuple[int, ...] | None,
    source: ImageSource | None,
    weights: str | None,
    classes: int | None,
    calibration_images: int | None,
    score: str,
    score_scale: str,
    allocator: str,
    threshold_weights: str | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    depth: bool,
    allow_emulated: bool,
    json_to: str | None,
) -> None:
    """Show what 'prune' would choose: how wide each channel group, how fast by the table, how much attention kept."""
    from aap_hw.lut.fidelity import table_error
    from aap_hw.models.origin import Origin
    from aap_hw.prune.baseline import plan_once
    from aap_hw.prune.task import PruneSettings, Task
    from aap_hw.train.sources import ImageSource

    table = read_table(lut_path)
    origin = Origin.of(model_name, input_size, weights_of(weights), classes)
    images = (source or ImageSource("embedded")).load(origin.input_shape)
    task = Task(origin, table, images, allow_emulated=allow_emulated)
    settings = PruneSettings(
        calibration_images=calibration_images,
        score=score,
        allocator=allocator,
        threshold_weights=threshold_weights,
        score_scale=score_scale,
        only=only,
        skip=skip,
        depth=depth,
    )
    dense, plan = plan_once(task, budgets, settings)
    error = table_error(table, origin.model, dense.network.input_shape)
    document = plan_document(dense, plan, budgets, table.device, error)
    if json_to is not None:
        write_json(document, json_to)
    else:
        _print(document)
        given = f" --input {input_text(input_size)}" if input_size else ""
        given += f" --data {shlex.quote(source.text)}" if source else ""
        given += f" --limit {source.limit}" if source and source.limit else ""
        given += f" --weights {shlex.quote(weights)}" if weights else ""
        given += f" --classes {classes}" if classes else ""
        given += f" --score {score}" if score != "attention" else ""
        given += f" --score-scale {score_scale}" if score_scale != "raw" else ""
        given += f" --allocator {allocator}" if allocator != "exact" else ""
        given += f" --threshold-weights {threshold_weights}" if threshold_weights else ""
        given += "" if depth else " --no-depth"
        given += f" --calibration-images {calibration_images}" if calibration_images else ""
        given += "".join(f" --only {shlex.quote(pattern)}" for pattern in only)
        given += "".join(f" --skip {shlex.quote(pattern)}" for pattern in skip)
        given += " --allow-emulated" if allow_emulated else ""
        click.echo(f"next: aap-hw prune --model {origin.model} --lut {lut_path} {budget_text(budgets)}{given}")


def plan_document(
    dense: Baseline, plan: Plan, budgets: Sequence[Budget], device: dict[str, Any], error: Fidelity | None
) -> dict[str, Any]:
    """A plan as JSON values; ``error`` is how far off the table was for other plans.

    ``constraints`` holds each budget with what is spent of it, the tightest first. Of each kernel ``table_us`` is the
    table's entry, and ``latency_us`` that times the calibration: what adds up to the predicted latency.
    """
    takes = dense.takes
    allowed = {budget.resource.name: budget.of(takes[budget.resource.name]) for budget in budgets}
    constraints = [
        {"resource": name, "dense": takes[name], "budget": amount, "spent": plan.spent[name]}
        for name, amount in sorted(allowed.items(), key=lambda one: one[1] / plan.spent[one[0]])
    ]
    in_network = plan.predicted_ms * 1e3 / math.fsum(row.latency_us for row in plan.kernels)
    return {
        "device": device["name"],
        "provenance": device["provenance"],
        "dense_ms": dense.dense_ms,
        "dense_is_measured": dense.measured,
        "budget_ms": allowed.get("latency"),
        "constraints": constraints,
        "predicted_ms": plan.predicted_ms,
        "table_error": None if error is None else error.as_json(),
        "calibration": in_network,
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
                "latency_us": row.latency_us * in_network,
                "table_us": row.latency_us,
                "interpolated": row.interpolated,
            }
            for row in plan.kernels
        ],
    }


def _print(document: dict[str, Any]) -> None:
    from rich.table import Table

    from aap_hw.cli.run_screen import plain_console
    from aap_hw.prune.words import constraints_sentence, error_text

    console = plain_console()
    grid = Table(box=None, pad_edge=False)
    for heading in ("channel group", "width", "kept", ""):
        grid.add_column(heading, justify="right" if heading in ("width", "kept") else "left", overflow="fold")
    for group in document["groups"]:
        note = f"frozen: {group['frozen']}" if group["frozen"] else "" if group["kept"] else "branch removed"
        grid.add_row(group["name"], str(group["width"]), str(group["kept"]), note)
    console.print(grid)
    how = "measured" if document["dense_is_measured"] else "predicted"
    budget = "" if document["budget_ms"] is None else f"budget {document['budget_ms']:.3f} ms, "
    console.print(
        f"{document['device']} ({document['provenance']} table): unpruned {document['dense_ms']:.3f} ms ({how}), "
        f"{budget}predicted {document['predicted_ms']:.3f} ms"
        f"{error_text(document['table_error'])}, "
        f"{document['kept_attention']:.1%} of the attention kept",
        soft_wrap=True,
    )
    console.print(constraints_sentence(document["constraints"]), soft_wrap=True)
    if document["interpolated_kernels"]:
        console.print(
            f"{document['interpolated_kernels']} latencies are interpolated between measured widths", soft_wrap=True
        )
