"""``aap-hw profile``: build or extend a device's latency table."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from aap_hw.cli.options import (
    attention_cuts_option,
    connect_option,
    device_option,
    float_layers_option,
    input_options,
    model_option,
    precision_option,
)
from aap_hw.cli.output import json_option, notice, quiet_option, write_json
from aap_hw.cli.streams import results_alone
from aap_hw.compile.keys.precision import FP32

if TYPE_CHECKING:
    from aap_hw.compile.keys.precision import NetworkPrecision
    from aap_hw.graph.program.inputs import Inputs
    from aap_hw.prune.defaults import AttentionCuts


@click.command(
    epilog="\b\nExamples:\n  aap-hw profile --device x86\n"
    "  aap-hw profile --device x86 --model resnet20 --precision int8 --out lut/x86.json"
)
@device_option
@connect_option
@model_option
@input_options
@click.option("--out", "out", metavar="FILE", help="The table to write or extend; default: lut/DEVICE.json.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that compile; default: one a core.")
@click.option("--no-cache", is_flag=True, help="Compile everything, and keep none of it in the user's cache folder.")
@attention_cuts_option
@precision_option
@float_layers_option
@quiet_option
@json_option
@click.pass_context
@results_alone
def command(
    ctx: click.Context,
    device: str,
    connect_to: str | None,
    model_name: str,
    inputs: Inputs | None,
    example: str | None,
    out: str | None,
    workers: int | None,
    no_cache: bool,
    attention_cuts: AttentionCuts,
    precision: NetworkPrecision,
    float_layers: tuple[str, ...],
    quiet: bool,
    json_to: str | None,
) -> None:
    """Measure on the device what each width of each kernel of a network costs.

    Interrupt it at any time: the same command goes on where it ended.
    """
    from aap_hw import api
    from aap_hw.cli.profile_screen import MeasuringScreen
    from aap_hw.cli.run_screen import plain_console
    from aap_hw.device.description import MEASURED
    from aap_hw.lut.gathering import disagreement
    from aap_hw.lut.table import in_precision
    from aap_hw.prune.words import slow_sentence

    console = plain_console(stderr=json_to is not None, quiet=quiet)
    screens: list[MeasuringScreen] = []
    computed = in_precision(precision)

    def on_start(begun: api.Profile) -> None:
        if begun.set_aside is not None:
            moved = f"{begun.path} is of another machine or version; it is kept as {begun.set_aside}"
            console.print(moved, soft_wrap=True)
        by_default = ctx.get_parameter_source("model_name") is ParameterSource.DEFAULT
        chosen = f"{begun.origin.model}{' (the default model)' if by_default else ''}"
        size = begun.origin.inputs.text
        console.print(f"profiling {chosen} at {size}{computed} on {device} -> {begun.path}", soft_wrap=True)
        if begun.network.slow_path:
            console.print(f"{begun.network.slow_path}; they have no schedule and may be slow", soft_wrap=True)
        screens.append(stack.enter_context(MeasuringScreen(begun.path, quiet=quiet)))

    with ExitStack() as stack:
        done = api.profile(
            device,
            model_name,
            connect=connect_to,
            input_shape=inputs,
            example=example,
            out=out,
            workers=workers,
            use_cache=not no_cache,
            attention_cuts=attention_cuts,
            precision=precision,
            float_layers=float_layers,
            on_start=on_start,
            on_progress=lambda progress: screens[0].update(progress),
            on_notice=notice,
        )
    table, path = done.table, done.path
    assert table is not None
    provenance = table.device["provenance"]
    is_measured = provenance == MEASURED
    console.print(
        f"{path}: {len(table)} points of {len(table.points)} kernels; "
        + (
            f"unpruned {done.origin.model}{computed} {done.dense_ms:.2f} ms"
            if is_measured
            else f"{provenance}: no latencies"
        ),
        soft_wrap=True,
    )
    drift = table.measurement["reference_drift"]
    if is_measured:
        console.print(
            f"the reference kernel varied by {drift:.0%} meanwhile, which the latencies are corrected for",
            soft_wrap=True,
        )
    if (sentence := disagreement(table.measurement.get("boards", {}))) is not None:
        console.print(sentence, soft_wrap=True)
    allow = "" if is_measured else " --allow-emulated"
    size = f" --input {done.origin.inputs.text}" if inputs else ""
    size += f" --example {shlex.quote(example)}" if example else ""
    size += f" --attention-cuts {attention_cuts}" if attention_cuts != "widths" else ""
    size += "" if precision == FP32 else f" --precision {precision}"
    share = done.slow_share if is_measured else None
    if share:
        console.print(slow_sentence(done.network.slow_path, share), soft_wrap=True)
    named = f"--model {shlex.quote(done.origin.model)}{size} --lut {shlex.quote(str(path))}"
    console.print(f"next: aap-hw plan {named} --budget 60%{allow}", soft_wrap=True)
    if json_to is not None:
        figures = {
            "slow_path": done.network.slow_path,
            "slow_share": share,
            "points": len(table),
            "dense_ms": done.dense_ms,
            "precision": precision,
            "provenance": provenance,
            "reference_drift": drift,
        }
        write_json({"table": str(path), **figures}, json_to)
