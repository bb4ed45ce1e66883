"""Which latency table is meant, and whether it may be one that nobody measured."""

from __future__ import annotations

import os
import shlex
from glob import glob
from typing import TYPE_CHECKING

import click

from aap_hw.cli.options.grouping import Decorator, as_one
from aap_hw.cli.output import notice
from aap_hw.compile.keys.precision import FP32, NetworkPrecision

if TYPE_CHECKING:
    from aap_hw.lut.table import LatencyTable


def _tables(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from aap_hw.lut.finding import shipped_tables

    # A shell that is told to look for files itself forgets the names.
    folders = [f"{folder}/" for folder in glob(f"{incomplete}*") if os.path.isdir(folder)]
    names = [name for name in shipped_tables() if name.startswith(incomplete)]
    return [*names, *folders, *glob(f"{incomplete}*.json")]


def lut_option_of(required: bool) -> Decorator:
    """The option that names a table."""
    return click.option(
        "--lut",
        "lut_path",
        required=required,
        metavar="FILE",
        shell_complete=_tables,
        help="The device's latency table: a file that 'aap-hw profile' wrote, such as lut/x86.json, or the name of a "
        "table that comes with aap-hw, such as x86 (see 'aap-hw lut list').",
    )


# As the functions of `aap_hw.api` call them.
unmeasured_options = as_one(
    "unmeasured",
    dict,
    click.option("--allow-emulated", is_flag=True, help="Accept a table that was made on an emulated device."),
    click.option("--allow-estimated", is_flag=True, help="Accept a table that was estimated without the device."),
)


def read_table(text: str) -> LatencyTable:
    """The latency table that an option names."""
    from aap_hw.given import table_of

    return table_of(text)


def read_table_to_predict(text: str, model: str, precision: NetworkPrecision = FP32) -> LatencyTable:
    """The latency table that an option names, with a notice if its latencies are no longer those of today's kernels."""
    from aap_hw import ranks

    table = read_table(text)
    if table.is_outdated and ranks.is_first():
        asked = ["--device", table.device["name"], "--model", model]
        asked += ["--estimate"] if table.is_estimated else []
        asked += [] if precision == FP32 else ["--precision", precision]
        notice(
            f"the latencies in {text} are of kernels as another version of aap-hw compiled them, so that predictions "
            f"may be off; make the table anew with 'aap-hw profile {shlex.join(asked)}'"
        )
    return table
