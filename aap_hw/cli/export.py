"""``aap-hw export``: a run in another program's format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aap_hw.cli.options import data_options, trained_option

if TYPE_CHECKING:
    from aap_hw.train.sources import ImageSource


@click.command(epilog="\b\nExample:\n  aap-hw export runs/demo --onnx demo.onnx")
@click.argument("run_folder", metavar="RUN")
@click.option("--onnx", "onnx_file", required=True, metavar="FILE", help="The ONNX file to write.")
@trained_option
@data_options
def command(run_folder: str, onnx_file: str, weights: str | None, source: ImageSource | None) -> None:
    """Export a pruned network, checked against PyTorch before it is kept."""
    from aap_hw.deploy.onnx import export_onnx
    from aap_hw.prune.job import images_of
    from aap_hw.prune.run import RunFolder

    run = RunFolder.at(run_folder, weights)
    result = export_onnx(run, images_of(run.path, source), Path(onnx_file))
    click.echo(
        f"{result.path}: {result.size / 1e6:.1f} MB; ONNX Runtime differs from PyTorch by at most "
        f"{result.max_abs_diff:.2g} on {result.images} images"
    )
