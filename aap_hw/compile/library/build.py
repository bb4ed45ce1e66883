"""From a kernel at its widths to scheduled code: the one lowering that tables and deployed networks share."""

from __future__ import annotations

from pathlib import Path

import tvm

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.cpu.convolution import build_convolution
from aap_hw.compile.cpu.depthwise import build_depthwise
from aap_hw.compile.cpu.light import LIGHT_KERNELS, build_light
from aap_hw.compile.families.shape import WITH_WEIGHTS
from aap_hw.compile.families.slow import is_slow
from aap_hw.compile.gpu import light as gpu_light
from aap_hw.compile.gpu.cubin import compile_cubin, cuda_source
from aap_hw.compile.gpu.weighted import weighted as build_gpu_weighted
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.target import DeviceTarget, GpuTarget
from aap_hw.compile.library.linking import link
from aap_hw.compile.library.slow import build_slow
from aap_hw.errors import UserError
from aap_hw.files import write_atomic


def build_kernel(address: Address, target: DeviceTarget) -> KernelFunction:
    """Scheduled code of one kernel.

    The result depends on the arguments alone, so what was measured for a table is what a network runs.

    Raises
    ------
    UserError : the operator of the key has no kernel in this version.
    """
    key = address.key
    if is_slow(key):
        return build_slow(address, target)
    if isinstance(target, GpuTarget):
        if key.op in WITH_WEIGHTS:
            return build_gpu_weighted(address, target)
        if key.op in gpu_light.LIGHT_KERNELS:
            return gpu_light.LIGHT_KERNELS[key.op](address, target)
    elif key.op in ("conv2d", "linear"):
        return build_convolution(address, target)
    elif key.op == "depthwise_conv2d":
        return build_depthwise(address, target)
    elif key.op in LIGHT_KERNELS:
        return build_light(address, target)
    raise UserError(f"the kernel {key} is not known to this version; update aap-hw or profile the device again")


def export_library(module: tvm.IRModule, target: DeviceTarget, library: Path) -> None:
    """Compile a Relax module and link it into a shared library; a GPU's machine code is put beside it, as ``.cubin``.

    Raises
    ------
    UserError : the linker for the target's platform, or the compiler for its GPU, is not installed.
    Fault : kernels are not valid code for the GPU.
    """
    with target.tvm:
        executable = tvm.compile(module, target=target.tvm)
    if isinstance(target, GpuTarget):
        write_atomic(cubin_beside(library), compile_cubin(cuda_source(executable), target.arch))
    link(executable, target.host, library)


def cubin_beside(library: Path) -> Path:
    """Where a library's machine code for the GPU is, if it has any."""
    return library.with_suffix(".cubin")
