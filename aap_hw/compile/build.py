"""From a kernel key and two widths to scheduled code: the one lowering that tables and deployed networks share."""

from __future__ import annotations

from pathlib import Path

import tvm

from aap_hw.compile.convolution import build_convolution
from aap_hw.compile.depthwise import build_depthwise
from aap_hw.compile.function import KernelFunction
from aap_hw.compile.kernel import KernelKey
from aap_hw.compile.light import LIGHT_KERNELS, build_light
from aap_hw.compile.linking import link
from aap_hw.compile.target import CpuTarget
from aap_hw.errors import UserError

# Raised with every change that makes other code of the same key: an older table then says nothing of it.
SCHEDULES = 2


def build_kernel(key: KernelKey, width_in: int, width_out: int, target: CpuTarget) -> KernelFunction:
    """Scheduled code of one kernel.

    The result depends on the arguments alone, so what was measured for a table is what a network runs.

    Raises
    ------
    UserError : the operator of the key has no kernel in this version.
    """
    if key.op in ("conv2d", "linear"):
        return build_convolution(key, width_in, width_out, target)
    if key.op == "depthwise_conv2d":
        return build_depthwise(key, width_in, target)
    if key.op in LIGHT_KERNELS:
        return build_light(key, width_in, width_out, target)
    raise UserError(f"the kernel {key} is not known to this version; update aap-hw or profile the device again")


def export_library(module: tvm.IRModule, target: CpuTarget, library: Path) -> None:
    """Compile a Relax module and link it into a shared library.

    Raises
    ------
    UserError : the linker for the target's platform is not installed.
    """
    with target.tvm:
        link(tvm.compile(module, target=target.tvm), target, library)
