"""``aap-hw lut show``: a table's device, how it was measured or estimated, its kernels, and its networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aap_hw.cli.options.table import read_table
from aap_hw.cli.output import json_option, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aap_hw.lut.fidelity import Fidelity
    from aap_hw.lut.table import LatencyTable, NetworkName


@click.command(epilog="\b\nExample:\n  aap-hw lut show lut/x86.json")
@click.argument("file", metavar="FILE")
@click.option("--points", is_flag=True, help="Also print every measured point.")
@json_option
def show(file: str, points: bool, json_to: str | None) -> None:
    """Show a latency table: its device, how it was measured or estimated, and its kernels."""
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
                "fastest_us": min(p.latency_us for p in rows.values()),
                "slowest_us": max(p.latency_us for p in rows.values()),
            }
            for key, rows in sorted(table.points.items())
        },
        "validation": [
            {
                **network_document(v.network),
                "plan": v.plan,
                "widths": dict(v.widths),
                "predicted_us": v.predicted_us,
                "measured_us": v.measured_us,
            }
            for v in table.validation
        ],
        "table_error": [
            {**network_document(name), **fidelity.as_json()} for name, fidelity in _fidelities(table).items()
        ],
    }


def _print(table: LatencyTable, points: bool) -> None:
    from aap_hw.cli.console import PlainConsole, grid_of
    from aap_hw.lut.gathering import disagreement

    console, device, how = PlainConsole(), table.device, table.measurement
    threads = f"{device['threads']} thread{'s' if device['threads'] > 1 else ''}"
    console.say(f"{device['name']}: {device['cpu']}, {threads}, {device['provenance']} {device['date']}")
    console.say(f"target {device['target']}, TVM {device['tvm']}, compiled on {device['host']}")
    for line in _origin_lines(table):
        console.say(line)
    console.say(
        f"between the widths of the table, latencies are interpolated ({_between(table)}); wider layers are refused"
    )
    figures = "points", "widths in", "widths out", "us"
    grid = grid_of("kernel", *figures, right=figures)
    for key, rows in sorted(table.points.items()):
        values = list(rows.values())
        grid.add_row(
            str(key),
            str(len(values)),
            _range([p.width_in for p in values]),
            _range([p.width_out for p in values]),
            _range([p.latency_us for p in values]),
        )
        if points:
            for p in values:
                spread = f" ± {p.spread_us / 2:.2g}" if p.samples else ""
                grid.add_row("", "", str(p.width_in), str(p.width_out), f"{p.latency_us:.4g}{spread}")
    console.print(grid)
    if device["provenance"] != "measured":
        console.say(f"these times are {device['provenance']}: no latencies of the device")
    for board, facts in how.get("boards", {}).items():
        console.say(f"{facts['points']} points by {board}, reference kernel {facts['reference_us'][1]} us")
    if (sentence := disagreement(how.get("boards", {}))) is not None:
        console.say(sentence)
    for line in _validation_lines(table):
        console.say(line)


def _origin_lines(table: LatencyTable) -> Iterator[str]:
    """How the latencies were measured, or what an estimate of them is worth."""
    from aap_hw.lut.provenance import Estimate

    how, points = table.measurement, f"{len(table)} points of {len(table.points)} kernels"
    if (estimate := Estimate.of(table)) is not None:
        yield f"{points}, by {estimate.method}"
        yield estimate.sentence()
        yield f"estimated for {', '.join(map(_short, table.networks))}"
        return
    yield f"{points}, each the {how['statistic']} of {how['repeats']} samples"
    if clock := _clock_and_heat(how):
        yield clock
    yield (
        f"the machine's speed changed by up to {how['reference_drift']:.1%} meanwhile, which is taken out of every "
        f"point: a reference kernel of {how['reference_us']} us was timed beside it"
    )


def _between(table: LatencyTable) -> str:
    """How many of the width pairs that the points of a kernel span are in the table."""
    spans = [
        (len(rows), len({p.width_in for p in rows.values()}), len({p.width_out for p in rows.values()}))
        for rows in table.points.values()
    ]
    grids = [(points, ins * outs) for points, ins, outs in spans if points > max(ins, outs)]
    if not grids:
        return "no kernel of this one has a grid of widths"
    there, pairs = map(sum, zip(*grids, strict=True))
    known = "estimated" if table.is_estimated else "measured"
    return f"{there} of {pairs} pairs of input and output width were {known}"


def _clock_and_heat(how: Mapping[str, Any]) -> str:
    parts = [f"governor {how['governor']}"] if "governor" in how else []
    if "temperature_c" in how:
        start, end = how["temperature_c"]
        parts.append(f"{start:.0f} °C at the start, {end:.0f} °C at the end")
    return ", ".join(parts)


def _validation_lines(table: LatencyTable) -> Iterator[str]:
    """One line for each whole network that was measured, and one for all random plans of a model."""
    from aap_hw.lut.fidelity import is_random

    for v in table.validation:
        if not is_random(v):
            yield (
                f"{_short(v.network)}, {v.plan}: predicted {v.predicted_us / 1e3:.3f} ms, "
                f"{table.device['provenance']} {v.measured_us / 1e3:.3f} ms ({v.predicted_us / v.measured_us - 1:+.1%})"
            )
    for name, fidelity in _fidelities(table).items():
        yield f"{_short(name)}: {fidelity.sentence()}{fidelity.order()}"


def _short(name: NetworkName) -> str:
    return name.text.replace(" at ", " ", 1)


def _fidelities(table: LatencyTable) -> dict[NetworkName, Fidelity]:
    from aap_hw.lut.fidelity import table_error

    names = dict.fromkeys(v.network for v in table.validation)
    found = {name: table_error(table, name.model, name.inputs, name.precision) for name in names}
    return {name: fidelity for name, fidelity in found.items() if fidelity is not None}


def _range(values: list[float] | list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g}-{high:.4g}"


def network_document(name: NetworkName) -> dict[str, Any]:
    """What JSON says of which network something is about."""
    from aap_hw.lut.file import inputs_json

    return {"model": name.model, "input": inputs_json(name.inputs), "precision": name.precision}
