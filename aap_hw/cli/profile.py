"""``aap-hw profile``: build or extend a device's latency table."""

from __future__ import annotations

from pathlib import Path

import click

from aap_hw.cli.options import DEFAULT_MODEL, build_model, device_option, input_option, input_text


@click.command(
    epilog="\b\nExamples:\n  aap-hw profile --device x86\n"
    "  aap-hw profile --device x86 --model resnet20 --out lut/x86.json"
)
@device_option
@click.option(
    "--model",
    "model_name",
    default=None,
    metavar="NAME",
    help=f"Network to profile; default: {DEFAULT_MODEL}.",
)
@input_option
@click.option("--out", "out", metavar="FILE", help="The table to write or extend; default: lut/DEVICE.json.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that compile; default: one a core.")
def command(
    device: str,
    model_name: str | None,
    input_size: tuple[int, ...] | None,
    out: str | None,
    workers: int | None,
) -> None:
    """Measure on the device what each width of each kernel of a network costs.

    Interrupt it at any time: the same command goes on where it ended.
    """
    from aap_hw.cli.profile_screen import MeasuringScreen
    from aap_hw.device import load_profile
    from aap_hw.device.connection import connect
    from aap_hw.files import require_writable_folder
    from aap_hw.lut.profiling import profile_model, set_aside

    profile = load_profile(device)
    profile.require_local("profile")
    path = Path(out) if out else Path("lut") / f"{profile.name}.json"
    require_writable_folder(path.parent)
    board = connect(profile, "profile")
    if out is None and (kept := set_aside(path, board)) is not None:
        click.echo(f"{path} is of another machine or version; it is kept as {kept}")
    model = build_model(model_name or DEFAULT_MODEL, input_size)
    chosen = "" if model_name else " (the default model)"
    click.echo(f"profiling {model.name}{chosen} at {input_text(model.input_shape)} on {profile.name} -> {path}")
    with MeasuringScreen(path) as screen:
        table = profile_model(
            model.name,
            model.module,
            (1, *model.input_shape),
            board,
            path,
            on_progress=screen.update,
            workers=workers,
        )
    dense_ms = table.dense_ms(model.name, (1, *model.input_shape))
    click.echo(f"{path}: {len(table)} points of {len(table.points)} kernels; unpruned {model.name} {dense_ms:.2f} ms")
    drift = table.measurement["reference_drift"]
    click.echo(f"the reference kernel varied by {drift:.0%} meanwhile, which the latencies are corrected for")
    size = f" --input {input_text(model.input_shape)}" if input_size else ""
    click.echo(f"next: aap-hw plan --model {model.name}{size} --lut {path} --budget 60%")
