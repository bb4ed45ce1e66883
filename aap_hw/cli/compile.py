"""``aap-hw compile``: compile a network for a device that need not be at hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aap_hw.cli.options.device import device_option
from aap_hw.cli.options.images import data_options
from aap_hw.cli.options.network import model_option, network_options
from aap_hw.cli.options.numbers import Whole
from aap_hw.cli.options.precision import precision_option
from aap_hw.cli.options.typed import typed
from aap_hw.cli.output import tell
from aap_hw.cli.streams import results_alone
from aap_hw.compile.keys.precision import INT8, NetworkPrecision
from aap_hw.errors import UserError
from aap_hw.prune.defaults import CALIBRATION_IMAGES

if TYPE_CHECKING:
    from aap_hw.models.origin import Origin
    from aap_hw.train.sources import ImageSource


@click.command(
    epilog="\b\nExamples:\n  aap-hw compile --device jetson-orin --model mobilenetv2\n"
    "  aap-hw compile --device x86 --model resnet20 --data embedded --precision int8 --out resnet20.so"
)
@device_option
@model_option
@network_options
@precision_option
@data_options
@click.option(
    "--calibration-images",
    type=Whole(min=1),
    metavar="N",
    help=f"For int8: measure the ranges of values on N samples; default {CALIBRATION_IMAGES}.",
)
@click.option("--out", metavar="FILE", help="Keep the compiled library; default: only show that it compiles.")
@click.pass_context
@results_alone
def command(
    ctx: click.Context,
    device: str,
    model_name: str,
    network: dict[str, Any],
    precision: NetworkPrecision,
    source: ImageSource | None,
    calibration_images: int | None,
    out: str | None,
) -> None:
    """Compile a network for a device, which need not be there: nothing is run.

    With --precision int8 the network is quantised first, on samples of --data or --example. A .pt2 file that torchao's
    PT2E flow has quantised is compiled in int8 as it is. For a GPU, kernels are compiled to its machine code.
    """
    from aap_hw.compile.keys.precision import in_precision
    from aap_hw.compile.keys.target import half_precision_of, require_precision
    from aap_hw.compile.library.build import cubin_beside
    from aap_hw.compile.library.linking import command_of
    from aap_hw.deploy.compiling import compile_unseen
    from aap_hw.device import load_profile
    from aap_hw.device.connection import target_of
    from aap_hw.files import require_writable_file
    from aap_hw.given import NO_SAMPLES, origin_of
    from aap_hw.prune.samples import calibration_of, samples_for

    origin, example = origin_of(model_name, **network, source=source, may_be_quantised=True), network["example"]
    if origin.is_quantised:
        _check_options(
            origin, source, calibration_images, is_in_float=precision != INT8 and "--precision" in typed(ctx)
        )
        precision = INT8
    is_int8, has_samples = precision == INT8, source is not None or example is not None
    if is_int8 and not has_samples and not origin.is_quantised:
        raise UserError(NO_SAMPLES)
    if not is_int8 and (source is not None or calibration_images is not None):
        raise UserError("--data and --calibration-images are for --precision int8; fp32 and half need no samples")
    profile, library = load_profile(device), Path(out) if out else None
    if library is not None:
        require_writable_file(library)
        if library == cubin_beside(library):
            raise UserError(
                f"--out {out} is what a GPU's machine code is called that is kept beside the library; give the library "
                "a name that ends in .so"
            )
    target = target_of(profile)
    require_precision(precision, target, profile.name)
    command_of(target.host)  # told before the work
    tell(f"compiling {origin.model} at {origin.inputs.text} for {profile.name}{in_precision(precision)}")
    samples = samples_for(origin, source, example) if is_int8 and not origin.is_quantised else None
    module, start = origin.build(), time.monotonic()
    calibration = None
    if samples is not None:
        calibration = calibration_of(samples, origin.inputs, calibration_images or CALIBRATION_IMAGES)
    result = compile_unseen(module, origin.inputs, target, library, calibration, precision)
    seconds = time.monotonic() - start
    size = f"{result.library_bytes / 1e6:.1f} MB"
    tell(f"library: {size}, {result.calls} calls of {result.kernels} kernels{f'; kept as {out}' if out else ''}")
    if is_int8:
        tell(f"int8: {result.in_int8} of the {result.calls} calls read bytes")
    if result.in_half:
        tell(f"half: {result.in_half} of the {result.calls} calls read {half_precision_of(target)}")
    if result.slow_path:
        tell(f"{result.slow_path}; there is no schedule for these")
    if result.gpu_kernels:
        tell(
            f"cubin for {dict(target.tvm.attrs)['arch']}: {result.cubin_bytes:,} bytes, {len(result.gpu_kernels)} "
            "kernels, each of the source found in it"
        )
    tell(f"compiled in {seconds:.1f} s; nothing was run, so nothing was timed")


def _check_options(
    origin: Origin, source: ImageSource | None, calibration_images: int | None, *, is_in_float: bool
) -> None:
    """Refuse what has no meaning for a network that is quantised already."""
    if is_in_float:
        raise UserError(f"{origin.model} is quantised in int8 already; leave --precision out")
    if source is not None or calibration_images is not None:
        raise UserError(f"{origin.model} is quantised already; leave --data and --calibration-images out")
