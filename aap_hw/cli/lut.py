"""``aap-hw lut``: the sub-commands about latency tables, each in a file of its own."""

from __future__ import annotations

import click

from aap_hw.cli.help import WholeSentences
from aap_hw.cli.lut_files import diff, merge, plot
from aap_hw.cli.lut_list import list_tables
from aap_hw.cli.lut_show import show
from aap_hw.cli.lut_validate import validate


@click.group(cls=WholeSentences, epilog="\b\nExample:\n  aap-hw lut show lut/x86.json")
def command() -> None:
    """List, show, compare and merge latency tables, and check them on the device."""


for each in (list_tables, show, plot, diff, merge, validate):
    command.add_command(each)
