"""Compiling a network for a device without running it: what comes out, and whether it is all there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from aap_hw.compile.gpu.cubin import kernels_of
from aap_hw.compile.keys.precision import FP32, HALVES, NetworkPrecision
from aap_hw.compile.keys.target import DeviceTarget
from aap_hw.compile.library.build import cubin_beside
from aap_hw.compile.library.lowering import compile_network
from aap_hw.deploy.form import form_of, in_int8
from aap_hw.errors import Fault
from aap_hw.files import make_folder, scratch_folder, write_atomic
from aap_hw.graph.program.inputs import Tensors
from aap_hw.inputs import Inputs


@dataclass(frozen=True)
class Compiled:
    """A network as machine code.

    Attributes
    ----------
    calls : how many kernels one inference calls, one after the other.
    kernels : how many different ones these are.
    library_bytes : size of the shared library, weights included.
    cubin_bytes, gpu_kernels : size of the GPU's machine code, and the kernels in it; 0 and none for a CPU.
    slow_path : how many kernels have no schedule, in words; empty if none.
    in_int8, in_half : how many of the calls read bytes, or half precision.
    """

    calls: int
    kernels: int
    library_bytes: int
    cubin_bytes: int = 0
    gpu_kernels: tuple[str, ...] = ()
    slow_path: str = ""
    in_int8: int = 0
    in_half: int = 0


def compile_unseen(
    module: nn.Module,
    inputs: Inputs,
    target: DeviceTarget,
    library: Path | None = None,
    calibration: Iterable[Tensors] | None = None,
    precision: NetworkPrecision = FP32,
) -> Compiled:
    """Compile a network for one sample of its inputs; the library is kept at ``library``, if that is given.

    With samples for ``calibration``, one a batch, it is quantised first, if it is not yet: then all kernels are in int8
    that can be. With the ``precision`` `HALF` all are in half precision that can be.

    Raises
    ------
    UserError : an operator of the network has no kernel, a tool that the target needs is not installed, or the library
        cannot be kept.
    Fault : the GPU's machine code is not whole.
    """
    with scratch_folder("compile") as scratch:
        path = scratch / "library.so"
        form = form_of(module, inputs.names) if calibration is None else in_int8(module, inputs.names, calibration)
        network = compile_network(form.compiled, inputs.zeros(), target, path, form.names, form.quantisation, precision)
        code = cubin_beside(path).read_bytes() if cubin_beside(path).exists() else b""
        made = path.read_bytes()
    if library is not None:
        make_folder(library.parent)
        if code:
            write_atomic(cubin_beside(library), code)
        write_atomic(library, made)
    kernels = {kernel.at(network.dense) for kernel in network.kernels}
    on_gpu = kernels_of(code)
    if code and len(on_gpu) < len(kernels):
        raise Fault(
            f"the network has {len(kernels)} kernels and the GPU's machine code {len(on_gpu)}; please report it"
        )
    return Compiled(
        len(network.kernels),
        len(kernels),
        len(made),
        len(code),
        on_gpu,
        network.slow_path,
        sum(kernel.key.types.read == "uint8" for kernel in network.kernels),
        sum(kernel.key.types.read in HALVES for kernel in network.kernels),
    )
