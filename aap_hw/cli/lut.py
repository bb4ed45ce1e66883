"""``aap-hw lut``: look into latency tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aap_hw.cli.options import read_table
from aap_hw.cli.output import json_option, write_json

if TYPE_CHECKING:
    from aap_hw.lut.table import LatencyTable


@click.group(epilog="\b\nExample:\n  aap-hw lut show lut/x86.json")
def command() -> None:
    """Look into latency tables."""


@command.command(epilog="\b\nExample:\n  aap-hw lut show lut/x86.json")
@click.argument("file", metavar="FILE")
@click.option("--points", is_flag=True, help="Print every measured point too.")
@json_option
def show(file: str, points: bool, json_to: str | None) -> None:
    """Print what is in a latency table: its device, how it was measured, its kernels."""
    table = read_table(file)
    if json_to is not None:
        write_json(_summary(table), json_to)
    else:
        _print(table, points)


def _summary(table: LatencyTable) -> dict[str, object]:
    return {
        "device": table.device,
        "measurement": table.measurement,
        "points": len(table),
        "kernels": {
            str(key): {
                "points": len(rows),
                "fastest_us": min(p.median_us for p in rows.values()),
                "slowest_us": max(p.median_us for p in rows.values()),
            }
            for key, rows in sorted(table.points.items())
        },
        "validation": [
            {
                "model": v.model,
                "input": list(v.input),
                "plan": v.plan,
                "predicted_us": v.predicted_us,
                "measured_us": v.measured_us,
            }
            for v in table.validation
        ],
    }


def _print(table: LatencyTable, points: bool) -> None:
    from rich.table import Table

    from aap_hw.cli.run_screen import plain_console

    console, device, how = plain_console(), table.device, table.measurement
    threads = f"{device['threads']} thread{'s' if device['threads'] > 1 else ''}"
    console.print(
        f"{device['name']}: {device['cpu']}, {threads}, {device['provenance']} {device['date']}", soft_wrap=True
    )
    console.print(f"target {device['target']}, TVM {device['tvm']}, compiled on {device['host']}", soft_wrap=True)
    console.print(
        f"{how['statistic']} of {how['repeats']} samples; reference kernel {how['reference_us']} us, "
        f"drift {how['reference_drift']:.1%}; {len(table)} points of {len(table.points)} kernels",
        soft_wrap=True,
    )
    grid = Table(box=None, pad_edge=False)
    for heading in ("kernel", "points", "widths in", "widths out", "us"):
        grid.add_column(heading, justify="left" if heading == "kernel" else "right", overflow="fold")
    for key, rows in sorted(table.points.items()):
        values = list(rows.values())
        grid.add_row(
            str(key),
            str(len(values)),
            _range([p.width_in for p in values]),
            _range([p.width_out for p in values]),
            _range([p.median_us for p in values]),
        )
        if points:
            for p in values:
                grid.add_row("", "", str(p.width_in), str(p.width_out), f"{p.median_us:.4g} ± {p.spread_us / 2:.2g}")
    console.print(grid)
    for entry in table.validation:
        error = entry.predicted_us / entry.measured_us - 1
        console.print(
            f"{entry.model} {'x'.join(map(str, entry.input))}, {entry.plan}: "
            f"predicted {entry.predicted_us / 1e3:.3f} ms, measured {entry.measured_us / 1e3:.3f} ms ({error:+.1%})",
            soft_wrap=True,
        )


def _range(values: list[float] | list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g}-{high:.4g}"
