"""What the kernels need to know of the machine they are compiled for: vector lanes, registers, caches, threads.

Nothing here knows how to reach a device or how a kernel is scheduled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import tvm

from aap_hw.errors import UserError

FLOAT_BITS = 32


@dataclass(frozen=True)
class CpuTarget:
    """A CPU as the kernel schedules see it.

    Attributes
    ----------
    options : the TVM target, as the canonical tuple of its (key, value) pairs.
    lanes : float32 values in one vector register.
    registers : vector registers that a kernel may use.
    l2_bytes : size of the cache that one core has for itself.
    threads : worker threads of the compiled network; 1 leaves out every parallel loop.
    """

    options: tuple[tuple[str, Any], ...]
    lanes: int
    registers: int
    threads: int
    l2_bytes: int = 512 * 1024
    tvm: tvm.target.Target = field(compare=False, hash=False, repr=False, default=None)

    @classmethod
    def of(cls, options: Mapping[str, Any], threads: int) -> CpuTarget:
        """Describe the CPU of a TVM target given as a mapping such as ``{"kind": "llvm", "mcpu": "znver4"}``.

        Raises
        ------
        UserError : TVM does not know the target, or it is not a CPU.
        """
        options = {**options, "num-cores": threads}
        try:
            target = tvm.target.Target(options)
            bits = int(tvm.target.codegen.llvm_get_vector_width(target))
        except Exception as problem:
            reason = str(problem).strip().splitlines()[-1]
            raise UserError(
                f"TVM {tvm.__version__} does not accept the target {options}: {reason}; "
                "correct [target] in the device profile"
            ) from problem
        if target.kind.name != "llvm":
            raise UserError(f"the target kind {target.kind.name!r} has no kernels in this version; use a CPU profile")
        lanes = max(4, bits // FLOAT_BITS)
        is_x86 = "aarch64" not in str(options.get("mtriple", "x86_64"))
        registers = 16 if is_x86 and lanes < 16 else 32
        return cls(tuple(sorted(options.items())), lanes, registers, threads, tvm=target)


def host_options() -> dict[str, Any]:
    """TVM target options that name the real features of the CPU that this process runs on."""
    return {"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()}
