"""``aap-hw deploy``: compile a run for a device, check it there, time it and write its bundle."""

from __future__ import annotations

from pathlib import Path

import click

from aap_hw.cli.options import device_option


@click.command(epilog="\b\nExample:\n  aap-hw deploy runs/demo --device x86")
@click.argument("run_folder", metavar="RUN")
@device_option
@click.option("--out", metavar="FOLDER", help="Where to write the bundle; default: RUN/bundle-DEVICE.")
def command(run_folder: str, device: str, out: str | None) -> None:
    """Deploy a pruned network: the compiled library with all that is needed to run and to check it."""
    from aap_hw.cli.run_screen import budget_sentences, plain_console, summary_table
    from aap_hw.deploy.deploying import deploy
    from aap_hw.device import load_profile
    from aap_hw.device.connection import connect
    from aap_hw.prune.run import RunFolder
    from aap_hw.train.data import load_embedded

    run = RunFolder(Path(run_folder))
    board = connect(load_profile(device), "deploy")
    result = deploy(run, board, load_embedded(), Path(out) if out else None)
    console = plain_console()
    console.print(summary_table(result.summary))
    for sentence in budget_sentences(result.summary):
        console.print(sentence, soft_wrap=True)
    console.print(
        f"checked on {result.images} images: largest difference from PyTorch {result.max_abs_diff:.2g}, "
        f"the same class for {result.agreement:.1f} %",
        soft_wrap=True,
    )
    console.print(f"bundle: {result.bundle}", soft_wrap=True)
