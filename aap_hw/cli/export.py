"""``aap-hw export``: a run in another program's format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aap_hw.cli.options.images import data_options
from aap_hw.cli.output import tell
from aap_hw.cli.streams import results_alone
from aap_hw.compile.keys.precision import EXPORTED_PRECISIONS

if TYPE_CHECKING:
    from aap_hw.train.sources import ImageSource


@click.command(epilog="\b\nExample:\n  aap-hw export runs/demo --onnx demo.onnx")
@click.argument("run_folder", metavar="RUN")
@click.option("--onnx", "onnx_file", required=True, metavar="FILE", help="The ONNX file to write.")
@click.option("--opset", type=int, metavar="N", help="Version of ONNX's operators, 9 to 23; default: PyTorch's choice.")
@click.option("--dynamic-batch", is_flag=True, help="Let the file take any number of samples at once, not just one.")
@click.option(
    "--precision",
    type=click.Choice(EXPORTED_PRECISIONS),
    help="Precision of the file; default: the one that the run was pruned in. int8: the network is quantised on "
    "training samples, and each operator gets QuantizeLinear and DequantizeLinear around it.",
)
@click.option(
    "--weights",
    metavar="FILE",
    help="A checkpoint of the pruned network, aap_hw.load(RUN), after code of yours has trained it; default: the "
    "weights that the run ended with.",
)
@data_options
@results_alone
def command(
    run_folder: str,
    onnx_file: str,
    opset: int | None,
    dynamic_batch: bool,
    precision: str | None,
    weights: str | None,
    source: ImageSource | None,
) -> None:
    """Write a pruned network as ONNX, and check the file against PyTorch."""
    from aap_hw.deploy.onnx import BATCH, export_onnx
    from aap_hw.deploy.onnx_file import Format
    from aap_hw.prune.job import samples_of
    from aap_hw.prune.run import RunFolder

    file_format = Format(opset, dynamic_batch)
    run = RunFolder.at(run_folder, weights)
    result = export_onnx(run, samples_of(run.path, source), Path(onnx_file), file_format, precision)
    theirs = "PyTorch" if result.precision == "fp32" else "PyTorch's quantised network"
    tell(
        f"{result.path}: {result.size / 1e6:.1f} MB, opset {result.opset}"
        f"{', any number of samples at once' if dynamic_batch else ''}; ONNX Runtime differs from {theirs} by at "
        f"most {result.max_abs_diff:.2g} on {result.images} samples"
        f"{f', alone and {BATCH} at once' if dynamic_batch else ''}"
        + (
            ""
            if result.agreement is None
            else f", and its int8 kernels give the same class for {result.agreement:.1f} %"
        )
    )
