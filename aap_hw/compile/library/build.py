"""From a kernel at its widths to scheduled code: the one lowering that tables and deployed networks share."""

from __future__ import annotations

from pathlib import Path

import tvm

from aap_hw.activity import doing
from aap_hw.compile import cpu, gpu
from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.families import family_of
from aap_hw.compile.families.slow import is_slow
from aap_hw.compile.gpu.cubin import compile_cubin, cuda_source
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import BFLOAT16
from aap_hw.compile.keys.target import CpuTarget, DeviceTarget, GpuTarget
from aap_hw.compile.library.linking import link
from aap_hw.compile.library.slow import build_slow
from aap_hw.errors import UserError
from aap_hw.files import write_atomic


def build_kernel(address: Address, target: DeviceTarget) -> KernelFunction:
    """Scheduled code of one kernel.

    The result depends on the arguments alone, so what was measured for a table is what a network runs.

    Raises
    ------
    UserError : the operator of the key has no kernel in this version, or none for the device in its precision.
    """
    key = address.key
    family_of(key)  # refuses keys of other versions
    if is_slow(key):
        return build_slow(address, target)
    if isinstance(target, CpuTarget):
        return cpu.built(address, target)
    if key.types.is_quantized:
        raise UserError(f"the kernel {key} has no code for GPUs in this version; compile for float32 there")
    if BFLOAT16 in (key.types.read, key.types.made):
        raise UserError(f"the kernel {key} has no code for GPUs, whose half precision is float16")
    return gpu.KERNELS[key.op](address, target)


def export_library(module: tvm.IRModule, target: DeviceTarget, library: Path) -> None:
    """Compile a Relax module and link it into a shared library; a GPU's machine code is put beside it, as ``.cubin``.

    Raises
    ------
    UserError : the linker for the target's platform, or the compiler for its GPU, is not installed.
    Fault : kernels are not valid code for the GPU.
    """
    with doing("making machine code of the kernels"):
        with target.tvm:
            executable = tvm.compile(module, target=target.tvm)
        if isinstance(target, GpuTarget):
            write_atomic(cubin_beside(library), compile_cubin(cuda_source(executable), target.arch))
    with doing("linking the library"):
        link(executable, target.host, library)


def cubin_beside(library: Path) -> Path:
    """Where a library's machine code for the GPU is, if it has any."""
    return library.with_suffix(".cubin")
