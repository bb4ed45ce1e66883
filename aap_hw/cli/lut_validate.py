"""``aap-hw lut validate``: a table's predictions of whole networks beside what these take on the device."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aap_hw.cli.lut_show import network_document
from aap_hw.cli.options.cuts import attention_cuts_option
from aap_hw.cli.options.device import connect_option, device_option
from aap_hw.cli.options.network import measured_network_options, model_option
from aap_hw.cli.options.numbers import Whole
from aap_hw.cli.options.precision import planned_precision_option
from aap_hw.cli.options.table import read_table
from aap_hw.cli.output import json_option, notice, write_json
from aap_hw.cli.streams import results_alone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aap_hw.compile.keys.precision import NetworkPrecision
    from aap_hw.lut.table import Validation
    from aap_hw.prune.defaults import AttentionCuts


@click.command(epilog="\b\nExample:\n  aap-hw lut validate --device x86 --model resnet20 --plans 20")
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
@click.option("--plans", default=20, show_default=True, type=Whole(min=1), help="Number of width plans.")
@click.option("--seed", default=0, show_default=True, type=Whole(min=0), help="Random seed of the plans.")
@click.option("--workers", type=Whole(min=1), help="Processes that compile; default: one per core.")
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
    from aap_hw.given import origin_of, workload_of
    from aap_hw.lut.finding import find_file
    from aap_hw.lut.same_device import require_not_estimated
    from aap_hw.lut.table import NetworkName
    from aap_hw.lut.validating import validate_model

    profile = load_profile(device).reached_by(connect_to)
    path = find_file(lut) if lut else Path("lut") / f"{profile.name}.json"
    table = read_table(str(path))
    require_not_estimated(table, path)  # before a device is looked for, which need not be there
    origin = origin_of(model_name, **network)
    with closing(Boards(profile, notice, PATIENCE_S)) as boards, MeasuringScreen(path) as screen:
        entries = validate_model(
            workload_of(origin, attention_cuts, precision),
            boards,
            path,
            plans=plans,
            seed=seed,
            on_progress=screen.update,
            workers=workers,
        )
    name = NetworkName(origin.model, origin.inputs, precision)
    if json_to is not None:
        write_json({**network_document(name), **_plans_document(entries)}, json_to)
    else:
        _print_plans(name.text, entries, table.device["provenance"])


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
    from aap_hw.cli.console import PlainConsole, grid_of
    from aap_hw.lut.fidelity import fidelity_of

    console, figures = PlainConsole(), ("predicted ms", f"{provenance} ms", "error")
    grid = grid_of("plan", *figures, right=figures)
    for v in entries:
        error = v.predicted_us / v.measured_us - 1
        grid.add_row(v.plan, f"{v.predicted_us / 1e3:.3f}", f"{v.measured_us / 1e3:.3f}", f"{error:+.1%}")
    console.print(grid)
    if (fidelity := fidelity_of(entries)) is not None:
        console.say(f"{network}: {fidelity.sentence()}{fidelity.order()}")
