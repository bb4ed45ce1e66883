"""``aap-hw lut``: look into latency tables, and check them against whole networks."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aap_hw.cli.help import WholeSentences
from aap_hw.cli.lut_files import diff, merge, plot
from aap_hw.cli.lut_list import list_tables
from aap_hw.cli.options.cuts import attention_cuts_option
from aap_hw.cli.options.device import connect_option, device_option
from aap_hw.cli.options.network import measured_network_options, model_option
from aap_hw.cli.options.precision import planned_precision_option
from aap_hw.cli.options.table import read_table
from aap_hw.cli.output import json_option, notice, write_json
from aap_hw.cli.streams import results_alone

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from aap_hw.compile.keys.precision import NetworkPrecision
    from aap_hw.lut.fidelity import Fidelity
    from aap_hw.lut.table import LatencyTable, NetworkName, Validation
    from aap_hw.prune.defaults import AttentionCuts


@click.group(cls=WholeSentences, epilog="\b\nExample:\n  aap-hw lut show lut/x86.json")
def command() -> None:
    """List, show, compare and merge latency tables, and check them on the device."""


for each in (list_tables, plot, diff, merge):
    command.add_command(each)


@command.command(epilog="\b\nExample:\n  aap-hw lut show lut/x86.json")
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


@command.command(epilog="\b\nExample:\n  aap-hw lut validate --device x86 --model resnet20 --plans 20")
@device_option
@connect_option
@model_option
@measured_network_options
@click.option(
    "--lut",
    "lut",
    metavar="FILE",
    help="The table to check, a file or the name of a shipped one; default: lut/DEVICE.json.",
)
@attention_cuts_option
@planned_precision_option
@click.option("--plans", default=20, show_default=True, type=click.IntRange(min=1), help="Number of width plans.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Random seed of the plans.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that compile; default: one per core.")
@json_option
@results_alone
def validate(
    device: str,
    connect_to: str | None,
    model_name: str,
    network: dict[str, Any],
    lut: str | None,
    attention_cuts: AttentionCuts,
    precision: NetworkPrecision,
    plans: int,
    seed: int,
    workers: int | None,
    json_to: str | None,
) -> None:
    """Check a table: measure a network at random widths, and compare with what the table predicts.

    The result is kept in the table, where 'plan' and 'prune' quote it. What it holds already is not measured again.
    """
    from aap_hw.cli.profile_screen import MeasuringScreen
    from aap_hw.device import load_profile
    from aap_hw.device.boards import PATIENCE_S, Boards
    from aap_hw.given import origin_of
    from aap_hw.lut.finding import find_file
    from aap_hw.lut.table import NetworkName
    from aap_hw.lut.validating import validate_model

    profile = load_profile(device).reached_by(connect_to)
    path = find_file(lut) if lut else Path("lut") / f"{profile.name}.json"
    table = read_table(str(path))
    origin = origin_of(model_name, **network)
    with closing(Boards(profile, notice, PATIENCE_S)) as boards, MeasuringScreen(path) as screen:
        entries = validate_model(
            origin.model,
            origin.build(),
            origin.inputs,
            boards,
            path,
            plans=plans,
            seed=seed,
            on_progress=screen.update,
            workers=workers,
            heads=attention_cuts == "heads",
            precision=precision,
        )
    name = NetworkName(origin.model, origin.inputs, precision)
    if json_to is not None:
        write_json({**_network_document(name), **_plans_document(entries)}, json_to)
    else:
        _print_plans(name.text, entries, table.device["provenance"])


def _network_document(name: NetworkName) -> dict[str, Any]:
    from aap_hw.lut.file import inputs_json

    return {"model": name.model, "input": inputs_json(name.inputs), "precision": name.precision}


def _plans_document(entries: Sequence[Validation]) -> dict[str, Any]:
    from aap_hw.lut.fidelity import fidelity_of

    fidelity = fidelity_of(entries)
    return {
        "plans": [
            {"plan": v.plan, "predicted_ms": v.predicted_us / 1e3, "measured_ms": v.measured_us / 1e3} for v in entries
        ],
        "summary": None if fidelity is None else fidelity.as_json(),
    }


def _print_plans(network: str, entries: Sequence[Validation], provenance: str) -> None:
    from rich.table import Table

    from aap_hw.cli.run_screen import plain_console
    from aap_hw.lut.fidelity import fidelity_of

    console, grid = plain_console(), Table(box=None, pad_edge=False)
    for heading in ("plan", "predicted ms", f"{provenance} ms", "error"):
        grid.add_column(heading, justify="left" if heading == "plan" else "right")
    for v in entries:
        error = v.predicted_us / v.measured_us - 1
        grid.add_row(v.plan, f"{v.predicted_us / 1e3:.3f}", f"{v.measured_us / 1e3:.3f}", f"{error:+.1%}")
    console.print(grid)
    if (fidelity := fidelity_of(entries)) is not None:
        console.print(f"{network}: {fidelity.sentence()}{fidelity.order()}", soft_wrap=True)


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
                **_network_document(v.network),
                "plan": v.plan,
                "widths": dict(v.widths),
                "predicted_us": v.predicted_us,
                "measured_us": v.measured_us,
            }
            for v in table.validation
        ],
        "table_error": [
            {**_network_document(name), **fidelity.as_json()} for name, fidelity in _fidelities(table).items()
        ],
    }


def _print(table: LatencyTable, points: bool) -> None:
    from rich.table import Table

    from aap_hw.cli.run_screen import plain_console
    from aap_hw.lut.gathering import disagreement

    console, device, how = plain_console(), table.device, table.measurement
    threads = f"{device['threads']} thread{'s' if device['threads'] > 1 else ''}"
    console.print(
        f"{device['name']}: {device['cpu']}, {threads}, {device['provenance']} {device['date']}", soft_wrap=True
    )
    console.print(f"target {device['target']}, TVM {device['tvm']}, compiled on {device['host']}", soft_wrap=True)
    for line in _origin_lines(table):
        console.print(line, soft_wrap=True)
    console.print(
        f"between the widths of the table, latencies are interpolated ({_between(table)}); wider layers are refused",
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
            _range([p.latency_us for p in values]),
        )
        if points:
            for p in values:
                spread = f" ± {p.spread_us / 2:.2g}" if p.samples else ""
                grid.add_row("", "", str(p.width_in), str(p.width_out), f"{p.latency_us:.4g}{spread}")
    console.print(grid)
    if device["provenance"] != "measured":
        console.print(f"these times are {device['provenance']}: no latencies of the device", soft_wrap=True)
    for board, facts in how.get("boards", {}).items():
        console.print(f"{facts['points']} points by {board}, reference kernel {facts['reference_us'][1]} us")
    if (sentence := disagreement(how.get("boards", {}))) is not None:
        console.print(sentence, soft_wrap=True)
    for line in _validation_lines(table):
        console.print(line, soft_wrap=True)


def _origin_lines(table: LatencyTable) -> Iterator[str]:
    """How the latencies were measured, or what an estimate of them is worth."""
    from aap_hw.lut.provenance import Estimate

    how, points = table.measurement, f"{len(table)} points of {len(table.points)} kernels"
    if (estimate := Estimate.of(table)) is not None:
        yield f"{points}; none was measured"
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
