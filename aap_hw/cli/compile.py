"""``aap-hw compile``: compile a network for a device that need not be at hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aap_hw.cli.options import device_option, input_options, model_option
from aap_hw.cli.output import tell
from aap_hw.cli.streams import results_alone

if TYPE_CHECKING:
    from aap_hw.graph.program.inputs import Inputs


@click.command(
    epilog="\b\nExamples:\n  aap-hw compile --device jetson-orin --model mobilenetv2\n"
    "  aap-hw compile --device x86 --model resnet20 --out resnet20.so"
)
@device_option
@model_option
@input_options
@click.option("--out", metavar="FILE", help="Keep the library; default: only show that it compiles.")
@results_alone
def command(device: str, model_name: str, inputs: Inputs | None, example: str | None, out: str | None) -> None:
    """Compile a network for a device without running it.

    For a GPU, which this machine need not have, the kernels' CUDA source is compiled to the GPU's machine code.
    """
    from aap_hw.compile.library.linking import command_of
    from aap_hw.deploy.compiling import compile_unseen
    from aap_hw.device import load_profile
    from aap_hw.device.connection import target_of
    from aap_hw.files import require_writable_file
    from aap_hw.models.origin import Origin
    from aap_hw.train.sources.example import inputs_given

    profile, library = load_profile(device), Path(out) if out else None
    if library is not None:
        require_writable_file(library)
    target = target_of(profile)
    command_of(target.host)  # told before the work
    origin = Origin.of(model_name, inputs_given(inputs, example))
    tell(f"compiling {origin.model} at {origin.inputs.text} for {profile.name}")
    module, start = origin.build(), time.monotonic()
    result = compile_unseen(module, origin.inputs, target, library)
    seconds = time.monotonic() - start
    size = f"{result.library_bytes / 1e6:.1f} MB"
    tell(f"library: {size}, {result.calls} calls of {result.kernels} kernels{f'; kept as {out}' if out else ''}")
    if result.slow_path:
        tell(f"{result.slow_path}; there is no schedule for these")
    if result.gpu_kernels:
        tell(
            f"cubin for {dict(target.tvm.attrs)['arch']}: {result.cubin_bytes:,} bytes, {len(result.gpu_kernels)} "
            "kernels, each of the source found in it"
        )
    tell(f"compiled in {seconds:.1f} s; nothing was run, so nothing was timed")
