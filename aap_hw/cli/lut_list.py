"""``aap-hw lut list``: the tables that can be named, with the machine and the networks of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aap_hw.cli.output import json_option, tell, write_json

if TYPE_CHECKING:
    from aap_hw.lut.table import LatencyTable

FOLDER = Path("lut")


@click.command("list", epilog="\b\nExample:\n  aap-hw lut list")
@json_option
def list_tables(json_to: str | None) -> None:
    """List the latency tables that come with aap-hw, and those in the folder lut/."""
    from aap_hw.errors import UserError
    from aap_hw.lut.file import load_table
    from aap_hw.lut.finding import shipped_tables

    # As they are written behind --lut: a name, or a path.
    shipped = shipped_tables()
    own = {str(file): file for file in sorted(FOLDER.glob("*.json"))}
    known = {file.resolve() for file in shipped.values()}  # in a checkout the folder is the package's own
    tables = [*shipped.items(), *((text, file) for text, file in own.items() if file.resolve() not in known)]
    rows: list[dict[str, Any]] = []
    for text, file in tables:
        try:
            rows.append({"table": text, "file": str(file), **_facts(load_table(file))})
        except UserError as problem:
            rows.append({"table": text, "file": str(file), "problem": str(problem)})
    if json_to is not None:
        write_json(rows, json_to)
    elif rows:
        _print(rows)
    else:
        tell("there are no tables yet; 'aap-hw profile --device NAME --model NAME' measures one")


def _facts(table: LatencyTable) -> dict[str, Any]:
    device = table.device
    networks = [network.text for network in table.networks]
    facts = {key: device[key] for key in ("name", "cpu", "threads", "provenance", "date")}
    return {**facts, "points": len(table), "outdated": table.is_outdated, "networks": networks}


def _print(rows: list[dict[str, Any]]) -> None:
    from aap_hw.cli.console import PlainConsole, grid_of

    console, headings = PlainConsole(), ("--lut", "device", "CPU", "threads", "latencies", "points", "networks")
    grid = grid_of(*headings, right=("threads", "points"))
    for row in rows:
        if "problem" in row:
            continue
        how = f"{row['provenance']} {row['date'][:10]}" + (", of older kernels" if row["outdated"] else "")
        names = ", ".join(row["networks"]) or "none as a whole"
        grid.add_row(row["table"], row["name"], row["cpu"], str(row["threads"]), how, str(row["points"]), names)
    console.print(grid)
    for row in rows:
        if "problem" in row:
            console.say(row["problem"])
