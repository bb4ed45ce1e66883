"""What the kernels need to know of the device they are compiled for: of a CPU vector lanes, registers, caches, threads.

Nothing here knows how to reach a device or how a kernel is scheduled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tvm
from tvm.target import codegen

from aap_hw.compile.keys.precision import (
    BFLOAT16,
    BYTES,
    FLOAT16,
    FLOAT32,
    INT8,
    MIXTURES,
    OTHERS,
    NetworkPrecision,
    is_with_half,
)
from aap_hw.errors import UserError

# Second-level cache of one core; shared caches are divided by the cores that share them.
L2_BYTES = {
    "cortex-a72": 256 << 10,
    "cortex-a78ae": 256 << 10,
    "skylake-avx512": 1 << 20,
    "cascadelake": 1 << 20,
    "icelake-server": 1280 << 10,
    "sapphirerapids": 2 << 20,
    "emeraldrapids": 2 << 20,
    "graniterapids": 2 << 20,
    "znver4": 1 << 20,
    "znver5": 1 << 20,
}
USUAL_L2_BYTES = 512 << 10
# Bytes that reach a core in a cycle from beyond that cache: timed on Zen 3, 4 and 5 and on Emerald Rapids; on Arm what
# the memory of a Raspberry Pi gives.
STREAMED_BYTES = {"znver3": 4, **dict.fromkeys(("sapphirerapids", "emeraldrapids", "graniterapids"), 6)}
USUAL_STREAMED_BYTES, STREAMED_BYTES_ON_ARM = 9, 3
# CPUs that compute with a register of AVX-512 in two halves, one after the other.
IN_TWO_HALVES = ("znver4",)
ARM = ("aarch64", "arm64")
# What every GPU grants a block without being asked.
SHARED_MEMORY = {"max_shared_memory_per_block": 48 << 10}
VECTOR_FEATURES = ("avx", "avx2", "fma", "avxvnni", "avx512f")
# Further ones of AVX-512: without that, none of these is there.
OF_AVX512 = ("avx512vnni", "avx512bf16", "avx512vbmi")


@dataclass(frozen=True)
class CpuTarget:
    """A CPU as the kernel schedules see it.

    Attributes
    ----------
    options : the TVM target, as the canonical tuple of its (key, value) pairs.
    vector_bytes : of one vector register.
    unit_bytes : of it, what an arithmetic unit computes at once.
    registers : vector registers that a kernel may use.
    l2_bytes : size of the cache that one core has for itself.
    streamed_bytes : that reach a core in a cycle from beyond that cache.
    threads : worker threads of the compiled network; 1 leaves out every parallel loop.
    """

    options: tuple[tuple[str, Any], ...] = field(hash=False)  # TVM has lists of features
    vector_bytes: int
    unit_bytes: int
    registers: int
    threads: int
    l2_bytes: int = USUAL_L2_BYTES
    streamed_bytes: int = USUAL_STREAMED_BYTES
    tvm: tvm.target.Target = field(compare=False, hash=False, repr=False, default=None)

    @property
    def host(self) -> CpuTarget:
        """The CPU that runs the library: this one."""
        return self

    @property
    def multiplies_by_lane(self) -> bool:
        """Whether an instruction multiplies a vector by one value of another: on 64-bit Arm."""
        triple = str(self.tvm.attrs.get("mtriple", codegen.llvm_get_system_triple()))
        return triple.startswith(ARM) and codegen.llvm_cpu_has_features("neon", self.tvm)

    @property
    def has_extremes_with_nan(self) -> bool:
        """Whether an instruction makes the larger of two values, and NaN if either is that: on 64-bit Arm."""
        return self.multiplies_by_lane

    @property
    def lanes(self) -> int:
        """Float32 values in one vector register."""
        return self.lanes_of(FLOAT32)

    def lanes_of(self, type_: str) -> int:
        """Values of a type in one vector register."""
        return self.vector_bytes // BYTES[type_]

    @classmethod
    def of(cls, options: Mapping[str, Any], threads: int) -> CpuTarget:
        """Describe the CPU of a TVM target given as a mapping such as ``{"kind": "llvm", "mcpu": "znver4"}``.

        Raises
        ------
        UserError : TVM does not know the target, or it is not a CPU.
        """
        try:
            options = {**options, "num-cores": threads}
            target = tvm.target.Target(options)
        except (ValueError, TypeError) as problem:
            raise _refused(options, str(problem)) from problem
        triple = str(target.attrs.get("mtriple", codegen.llvm_get_system_triple()))
        cpu = str(target.attrs.get("mcpu", "generic"))
        if not codegen.llvm_is_valid_cpu(cpu, triple):  # TVM would compile for a generic CPU instead
            raise _refused(options, f"LLVM knows no CPU {cpu!r} of the platform {triple}")
        vector_bytes, registers = _vector_unit(target, triple)
        unit_bytes = min(vector_bytes, 32) if cpu in IN_TWO_HALVES else vector_bytes
        l2_bytes = L2_BYTES.get(cpu, USUAL_L2_BYTES)
        usual = STREAMED_BYTES_ON_ARM if triple.startswith(ARM) else USUAL_STREAMED_BYTES
        memory = l2_bytes, STREAMED_BYTES.get(cpu, usual)
        return cls(tuple(sorted(options.items())), vector_bytes, unit_bytes, registers, threads, *memory, tvm=target)


@dataclass(frozen=True)
class GpuTarget:
    """An NVIDIA GPU; how kernels are arranged for it is left to TVM's dlight rules.

    Attributes
    ----------
    options : the TVM target, as the canonical tuple of its (key, value) pairs.
    arch : CUDA architecture, such as ``sm_87``.
    host : the CPU that runs the library, which launches the kernels.
    vector_bytes : of the widest load.
    """

    options: tuple[tuple[str, Any], ...] = field(hash=False)  # the host is a mapping
    arch: str
    host: CpuTarget
    vector_bytes: int = 16
    tvm: tvm.target.Target = field(compare=False, hash=False, repr=False, default=None)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GpuTarget:
        """Describe the GPU of a TVM target such as ``{"kind": "cuda", "arch": "sm_87"}``; of this machine without arch.

        The CPU that it serves is the target's ``host``, or this machine's.

        Raises
        ------
        UserError : TVM does not know the target, or it is the GPU of a machine that has none.
        """
        if "tag" not in options and "arch" not in options:
            if not tvm.cuda(0).exist:
                raise UserError(
                    "this machine has no NVIDIA GPU with a driver, and the device profile names no other; "
                    'write arch = "sm_87" or a tag under [target] to compile for a GPU elsewhere'
                )
            options = {**options, "arch": "sm_" + tvm.cuda(0).compute_version.replace(".", "")}
        if "tag" not in options:
            options = {**SHARED_MEMORY, **options}
        try:
            target = tvm.target.Target(dict(options))
        except (ValueError, TypeError) as problem:
            raise _refused(options, str(problem)) from problem
        known = host_options() if target.host is None else {"kind": "llvm", **_cpu_of(target.host)}
        host = CpuTarget.of(known, threads=1)
        target = tvm.target.Target({name: v for name, v in options.items() if name != "host"}, host=host.tvm)
        return cls(tuple(sorted(options.items())), str(target.attrs["arch"]), host, tvm=target)

    @property
    def lanes(self) -> int:
        """Float32 values of the widest load."""
        return self.vector_bytes // BYTES[FLOAT32]

    @property
    def threads(self) -> int:
        """Worker threads of the host."""
        return self.host.threads


def _cpu_of(host: tvm.target.Target) -> dict[str, str]:
    return {name: str(host.attrs[name]) for name in ("mtriple", "mcpu") if name in host.attrs}


DeviceTarget = CpuTarget | GpuTarget


def half_precision_of(target: DeviceTarget) -> str:
    """The half precision that a device has instructions for: ``bfloat16`` or ``float16``.

    Raises
    ------
    UserError : it has none.
    """
    if isinstance(target, GpuTarget) or codegen.llvm_cpu_has_features("fullfp16", target.tvm):
        return FLOAT16
    if all(codegen.llvm_cpu_has_features(feature, target.tvm) for feature in ("avx512bf16", "avx512vl")):
        return BFLOAT16
    raise UserError(
        f"the CPU of {dict(target.options)} has no instructions for half precision (AVX512-BF16, or float16 of "
        "Armv8.2); compile for fp32 or int8 there"
    )


def half_of(precision: NetworkPrecision, target: DeviceTarget) -> str:
    """What half precision is on a device, for networks that have kernels in it; for others it does not matter.

    Raises
    ------
    UserError : the network has such kernels, and the device has no half precision.
    """
    return half_precision_of(target) if is_with_half(precision) else BFLOAT16


def device_target(options: Mapping[str, Any], threads: int) -> DeviceTarget:
    """The device of a TVM target given as a mapping such as ``{"kind": "llvm", "mcpu": "znver4"}``.

    Raises
    ------
    UserError : TVM does not know the target, or it is neither a CPU nor an NVIDIA GPU.
    """
    try:
        # A tag is another name of a whole target, its kind included.
        kind = options["kind"] if "kind" in options else tvm.target.Target(dict(options)).kind.name
    except (ValueError, TypeError) as problem:
        raise _refused(options, str(problem)) from problem
    if kind not in ("llvm", "cuda"):
        raise _refused(options, f"there are kernels for the kinds llvm and cuda and not for {kind!r}")
    return GpuTarget.of(options) if kind == "cuda" else CpuTarget.of(options, threads)


def require_precision(precision: NetworkPrecision, target: DeviceTarget, device: str) -> None:
    """Raise UserError if there are no kernels of a precision for the target of a device, which is named.

    As `half_precision_of` does, which says what a network in half precision is in.
    """
    if is_with_half(precision):
        half_precision_of(target)
    if MIXTURES.get(precision, precision) in OTHERS and isinstance(target, GpuTarget):
        raise UserError(
            f"kernels in {INT8} are for CPUs so far, and {device} is a GPU; take a network that is not quantised, "
            "in float32 or half precision"
        )


def _refused(options: Mapping[str, Any], reason: str) -> UserError:
    sentence = reason.strip().splitlines()[-1].removesuffix(".").partition(". Target creation")[0]
    return UserError(
        f"TVM {tvm.__version__} does not accept the target {dict(options)}: {sentence}; "
        "correct [target] in the device profile"
    )


def _vector_unit(target: tvm.target.Target, triple: str) -> tuple[int, int]:
    """Bytes of a vector register, and how many registers there are."""
    if not triple.startswith(("x86_64", "amd64", "i386", "i686")):
        return max(16, int(codegen.llvm_get_vector_width(target)) // 8), 16 if triple.startswith("armv") else 32
    # TVM's own answer is 512 bits for every x86 CPU, those without AVX-512 included.
    if codegen.llvm_cpu_has_features("avx512f", target):
        return 64, 32
    return (32 if codegen.llvm_cpu_has_features("avx", target) else 16), 16


def host_options(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """TVM target options that name the real features of the CPU that this process runs on.

    LLVM knows the CPU by its model; what a virtual machine hides of that model's features is taken away again.
    """
    options: dict[str, Any] = {"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()}
    try:
        lines = [line.partition(":")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("flags")]
    except OSError:
        lines = []
    if lines:
        # The kernel writes avx512_bf16 where LLVM writes avx512bf16.
        target, present = tvm.target.Target(options), set(lines[0].replace("_", "").split())

        def hidden_of(features: Sequence[str]) -> list[str]:
            return [f for f in features if codegen.llvm_cpu_has_features(f, target) and f not in present]

        hidden = hidden_of(VECTOR_FEATURES)
        hidden += [] if "avx512f" in hidden else hidden_of(OF_AVX512)
        if hidden:
            options["mattr"] = [f"-{feature}" for feature in hidden]
    return options
