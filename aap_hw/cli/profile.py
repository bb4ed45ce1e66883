"""``aap-hw profile``: build or extend a device's latency table."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from aap_hw.cli.options import connect_option, device_option, input_option, input_text, model_option
from aap_hw.cli.output import json_option, quiet_option, write_json


@click.command(
    epilog="\b\nExamples:\n  aap-hw profile --device x86\n"
    "  aap-hw profile --device x86 --model resnet20 --out lut/x86.json"
)
@device_option
@connect_option
@model_option
@input_option
@click.option("--out", "out", metavar="FILE", help="The table to write or extend; default: lut/DEVICE.json.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that compile; default: one a core.")
@quiet_option
@json_option
def command(
    device: str,
    connect_to: str | None,
    model_name: str,
    input_size: tuple[int, ...] | None,
    out: str | None,
    workers: int | None,
    quiet: bool,
    json_to: str | None,
) -> None:
    """Measure on the device what each width of each kernel of a network costs.

    Interrupt it at any time: the same command goes on where it ended.
    """
    from aap_hw.cli.profile_screen import MeasuringScreen
    from aap_hw.cli.run_screen import plain_console
    from aap_hw.device import load_profile
    from aap_hw.device.connection import connect
    from aap_hw.files import require_writable_folder
    from aap_hw.lut.profiling import profile_model, set_aside
    from aap_hw.models.origin import Origin

    console = plain_console(stderr=json_to is not None, quiet=quiet)
    profile = load_profile(device).reached_by(connect_to)
    path = Path(out) if out else Path("lut") / f"{profile.name}.json"
    require_writable_folder(path.parent)
    board = connect(profile)
    origin = Origin.of(model_name, input_size)
    module, shape = origin.build(), (1, *origin.input_shape)
    if out is None and (kept := set_aside(path, board)) is not None:
        console.print(f"{path} is of another machine or version; it is kept as {kept}", soft_wrap=True)
    by_default = click.get_current_context().get_parameter_source("model_name") is ParameterSource.DEFAULT
    chosen = " (the default model)" if by_default else ""
    console.print(
        f"profiling {origin.model}{chosen} at {input_text(origin.input_shape)} on {profile.name} -> {path}",
        soft_wrap=True,
    )
    with MeasuringScreen(path, quiet=quiet) as screen:
        table = profile_model(
            origin.model,
            module,
            shape,
            board,
            path,
            on_progress=screen.update,
            workers=workers,
        )
    dense_ms = table.dense_ms(origin.model, shape)
    console.print(
        f"{path}: {len(table)} points of {len(table.points)} kernels; unpruned {origin.model} {dense_ms:.2f} ms",
        soft_wrap=True,
    )
    drift = table.measurement["reference_drift"]
    console.print(
        f"the reference kernel varied by {drift:.0%} meanwhile, which the latencies are corrected for", soft_wrap=True
    )
    size = f" --input {input_text(origin.input_shape)}" if input_size else ""
    console.print(f"next: aap-hw plan --model {origin.model}{size} --lut {path} --budget 60%", soft_wrap=True)
    if json_to is not None:
        write_json({"table": str(path), "points": len(table), "dense_ms": dense_ms, "reference_drift": drift}, json_to)
