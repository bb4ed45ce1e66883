"""``aap-hw lut plot``, ``diff`` and ``merge``: what can be done with table files alone, without a device."""

from __future__ import annotations

from pathlib import Path

import click

from aap_hw.cli.options.table import read_table
from aap_hw.cli.output import json_option, tell, write_json

# Points that differ the most, and conflicts, are listed up to this many.
LISTED = 10


@click.command(
    epilog="\b\nExamples:\n  aap-hw lut plot lut/x86.json --out stairs.html\n"
    "  aap-hw lut plot lut/x86.json --kernel depthwise --out stairs.png"
)
@click.argument("file", metavar="FILE")
@click.option("--out", required=True, metavar="PICTURE", help="An .html file to explore, or a .png.")
@click.option("--kernel", default="", metavar="TEXT", help="Only kernels whose key contains this.")
def plot(file: str, out: str, kernel: str) -> None:
    """Draw the latency stairs of a table's kernels, the slowest first."""
    from aap_hw.report.tables import write_stairs

    drawn = write_stairs(read_table(file), kernel, Path(out))
    tell(f"{out}: {drawn} kernel{'s' if drawn > 1 else ''}")


@click.command(
    epilog="\b\nExamples:\n  aap-hw lut diff lut/x86.json mine.json\n"
    "  aap-hw lut diff lut/x86.json mine.json --out both.html"
)
@click.argument("first", metavar="FILE")
@click.argument("second", metavar="OTHER")
@click.option("--out", metavar="PICTURE", help="Also draw both against each other: an .html or .png file.")
@json_option
def diff(first: str, second: str, out: str | None, json_to: str | None) -> None:
    """Say where two tables differ: in their devices, and in the latencies of points that both have."""
    from aap_hw.cli.console import PlainConsole
    from aap_hw.lut.comparing import compare

    comparison = compare(read_table(first), read_table(second))
    if out is not None:
        from aap_hw.report.tables import write_comparison

        write_comparison((first, second), comparison, Path(out))
    quantiles = comparison.quantiles()
    farthest = comparison.farthest(LISTED)
    if json_to is not None:
        document = {
            "facts": [{"name": name, "first": ours, "second": theirs} for name, ours, theirs in comparison.facts],
            "shared_points": len(comparison.shared),
            "only_first": comparison.only_first,
            "only_second": comparison.only_second,
            "second_over_first": quantiles,
            "farthest": [
                {
                    "kernel": str(p.address.key),
                    "in": p.address.width_in,
                    "out": p.address.width_out,
                    "first_us": p.first_us,
                    "second_us": p.second_us,
                }
                for p in farthest
            ],
        }
        write_json(document, json_to)
        return
    console = PlainConsole()
    for name, ours, theirs in comparison.facts:
        console.say(f"{name}: {ours} in {first}, {theirs} in {second}")
    console.say(
        f"{len(comparison.shared)} points of both, {comparison.only_first} only in {first}, "
        f"{comparison.only_second} only in {second}"
    )
    if quantiles:
        console.say(
            f"latency in {second} over that in {first}: median {quantiles['median']:.3f}, nine in ten points between "
            f"{quantiles['p5']:.3f} and {quantiles['p95']:.3f}; the farthest apart:"
        )
    for p in farthest:
        console.say(f"  {p.address}: {p.first_us:.4g} and {p.second_us:.4g} us ({p.ratio - 1:+.1%})")
    if out is not None:
        console.say(f"{out}: both against each other")


@click.command(epilog="\b\nExample:\n  aap-hw lut merge monday.json tuesday.json --out both.json")
@click.argument("files", metavar="FILE [FILE ...]", nargs=-1, required=True)
@click.option("--out", required=True, metavar="FILE", help="The table to write; it must not exist yet.")
def merge(files: tuple[str, ...], out: str) -> None:
    """Merge several tables of one device into one, and name what they disagree on.

    What each table predicted for whole networks is kept as it is; 'aap-hw profile' with the same --out fits its
    predictions to all points.
    """
    from aap_hw.cli.console import PlainConsole
    from aap_hw.errors import UserError
    from aap_hw.lut.file import save_table
    from aap_hw.lut.merging import TOLERANCE
    from aap_hw.lut.merging import merge as merge_tables

    if Path(out).exists():
        raise UserError(f"{out} exists already; give --out another name, or delete it")
    merged = merge_tables([(file, read_table(file)) for file in files])
    save_table(merged.table, Path(out))
    console = PlainConsole()
    how = "estimated, " if merged.table.is_estimated else ""
    console.say(f"{out}: {how}{len(merged.table)} points of {len(merged.table.points)} kernels")
    if merged.conflicts:
        differ = "1 point differs" if len(merged.conflicts) == 1 else f"{len(merged.conflicts)} points differ"
        console.say(f"{differ} by more than {TOLERANCE:.0%} between tables; the quicker is kept:")
    for c in merged.conflicts[:LISTED]:
        console.say(f"  {c.address}: {c.kept_us:.4g} us of {c.kept} kept, not {c.other_us:.4g}")
    if len(merged.conflicts) > LISTED:
        console.say(f"  and {len(merged.conflicts) - LISTED} more")
    for network in merged.networks:
        console.say(f"in an earlier table too, and left out: {network}")
