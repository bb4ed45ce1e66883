"""Instruction set extensions that compiled code may use, as Linux names them where the code is to run."""

from __future__ import annotations

from tvm.target import codegen

from aap_hw.compile.keys.target import CpuTarget

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


def cpu_features_of(target: CpuTarget) -> list[str]:
    """The extensions of a target that not every CPU of its kind has."""
    triple = str(target.tvm.attrs.get("mtriple", codegen.llvm_get_system_triple()))
    known = CPU_FEATURES.get(triple.split("-")[0], {})
    return [linux for llvm, linux in known.items() if codegen.llvm_cpu_has_features(llvm, target.tvm)]
