"""``aap-hw deploy``: compile a run for a device, check it there, time it and write its bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aap_hw.cli.options import connect_option, data_options, device_option, trained_option
from aap_hw.cli.output import json_option, notice, quiet_option, write_json
from aap_hw.cli.streams import results_alone
from aap_hw.errors import UserError

if TYPE_CHECKING:
    from aap_hw.train.sources import ImageSource


@click.command(
    epilog="\b\nExamples:\n  aap-hw deploy runs/demo --device x86\n  aap-hw deploy runs/demo --device x86 --no-run"
)
@click.argument("run_folder", metavar="RUN")
@device_option
@connect_option
@click.option("--out", metavar="FOLDER", help="Where to write the bundle; default: RUN/bundle-DEVICE.")
@trained_option
@data_options
@click.option("--no-run", is_flag=True, help="Only compile and write the bundle; the device need not be there.")
@quiet_option
@json_option
@results_alone
def command(
    run_folder: str,
    device: str,
    connect_to: str | None,
    out: str | None,
    weights: str | None,
    no_run: bool,
    source: ImageSource | None,
    quiet: bool,
    json_to: str | None,
) -> None:
    """Deploy a pruned network: the compiled library with all that is needed to run and to check it."""
    from aap_hw import api
    from aap_hw.cli.run_screen import plain_console, summary_table
    from aap_hw.prune.words import budget_sentences

    if no_run and connect_to is not None:
        raise UserError("--no-run does not reach the device, so --connect would do nothing; leave one of them out")
    console = plain_console(stderr=json_to is not None, quiet=quiet)
    if no_run:
        written = api.bundle(run_folder, device, weights=weights, data=source, out=out)
        console.print("nothing was run: outputs are not checked and latency is not measured", soft_wrap=True)
        console.print(f"bundle: {written}; on the device: python3 run.py --time", soft_wrap=True)
        if json_to is not None:
            write_json({"bundle": str(written)}, json_to)
        return
    result = api.deploy(run_folder, device, connect=connect_to, weights=weights, data=source, out=out, on_notice=notice)
    if result.latencies:
        console.print(summary_table(result.summary))
        for sentence in budget_sentences(result.summary):
            console.print(sentence, soft_wrap=True)
        if weights is not None and result.summary.get("accuracy_pruned") is not None:
            console.print(f"accuracies are those of the run's own weights, not of {weights}", soft_wrap=True)
    else:
        console.print("the device is emulated: outputs are checked and nothing is timed", soft_wrap=True)
    console.print(
        f"checked on {result.images} samples: largest difference from PyTorch {result.max_abs_diff:.2g}"
        + ("" if result.agreement is None else f", the same class for {result.agreement:.1f} %"),
        soft_wrap=True,
    )
    if not result.summary["retrained"]:
        console.print(f"weights: {weights or 'as they were cut; --weights FILE takes trained ones'}", soft_wrap=True)
    if slow := result.summary["slow_path"]:
        console.print(f"{slow}; there is no schedule for these", soft_wrap=True)
    console.print(f"bundle: {result.bundle}", soft_wrap=True)
    if json_to is not None:
        write_json({"bundle": str(result.bundle), **result.summary}, json_to)
