"""What a machine must be to run a compiled network: read off the library and its target, checked by the runners."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tvm.target import codegen

from aap_hw.compile.keys.target import DeviceTarget, GpuTarget
from aap_hw.deploy.runners.run import machine_of

# Extensions that not every CPU of a kind has, by LLVM's name and by that of /proc/cpuinfo.
CPU_FEATURES = {
    "x86_64": {
        **{name: name for name in ("avx", "avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl")},
        "avx512vnni": "avx512_vnni",
        "avxvnni": "avx_vnni",
        "avx512vbmi": "avx512vbmi",
        "avx512bf16": "avx512_bf16",
    },
    "aarch64": {
        "lse": "atomics",
        "rdm": "asimdrdm",
        "dotprod": "asimddp",
        "fullfp16": "asimdhp",
        "i8mm": "i8mm",
        "bf16": "bf16",
    },
}


@dataclass(frozen=True)
class Requirements:
    """What a bundle needs.

    Attributes
    ----------
    machine : processor of the library, such as ``aarch64``.
    cpu_features : instruction set extensions that it may use, as Linux names them.
    accelerator : ``cpu``, or ``cuda`` if a GPU runs the kernels.
    threads : worker threads that it was compiled for.
    tvm : version of the package apache-tvm that compiled it.
    """

    machine: str
    cpu_features: tuple[str, ...]
    accelerator: str
    threads: int
    tvm: str

    @classmethod
    def of(cls, library: Path, target: DeviceTarget) -> Requirements:
        """What a library that was compiled for ``target`` needs."""
        machine = machine_of(library)
        known = CPU_FEATURES.get(machine, {})
        features = [linux for llvm, linux in known.items() if codegen.llvm_cpu_has_features(llvm, target.host.tvm)]
        accelerator = "cuda" if isinstance(target, GpuTarget) else "cpu"
        return cls(machine, tuple(features), accelerator, target.threads, version("apache-tvm"))
