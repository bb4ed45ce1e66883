"""``aap-hw report``: runs as an HTML file to look at."""

from __future__ import annotations

import click

from aap_hw.cli.output import tell


@click.command(
    epilog="\b\nExamples:\n  aap-hw report runs/demo\n  aap-hw report runs/a runs/b runs/c --out compared.html"
)
@click.argument("runs", metavar="RUN [RUN ...]", nargs=-1, required=True)
@click.option(
    "--out", metavar="FILE", help="The file to write; default: RUN/report.html, or comparison.html beside the runs."
)
def command(runs: tuple[str, ...], out: str | None) -> None:
    """Write an HTML report of a run, or of several side by side. It is one file and needs no network."""
    from aap_hw import api

    tell(f"report: {api.report(*runs, out=out)}; open it in a browser")
