"""Machine code of CUDA kernels, made and checked on machines without a GPU.

Without a driver TVM stores the kernels' source in the library and leaves compiling it to the device, where an error
would show late. Here NVRTC, which comes with PyTorch's packages, compiles it at once. The
result is kept in the user's cache, by source, if that can be written.
"""

from __future__ import annotations

import hashlib
import logging
import re
import struct
from collections.abc import Iterator
from typing import Any

import tvm_ffi

from aap_hw.errors import Fault, UserError
from aap_hw.files import WriteError, make_folder, read_optional, write_atomic
from aap_hw.home import cache_folder

LOG = logging.getLogger(__name__)
# TVM's sources include some of CUDA's headers. Kernels use nothing from them but float16, as a type that is stored.
HEADERS = {
    "cuda_fp16.h": """
        struct __align__(2) __half {
            unsigned short bits;
            __half() = default;
            __device__ __half(float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value)); }
            __device__ operator float() const {
                float value;
                asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
                return value;
            }
        };
        struct __align__(4) __half2 { __half x, y; };
        typedef __half half;
        typedef __half2 half2;
        inline __device__ float __half2float(half x) { return x; }
        inline __device__ half __float2half(float x) { return x; }
        inline __device__ half __float2half_rn(float x) { return x; }
        inline __device__ half2 make_half2(half x, half y) { half2 both = {x, y}; return both; }
        inline __device__ bool __hgt(half x, half y) { return float(x) > float(y); }
        inline __device__ bool __hlt(half x, half y) { return float(x) < float(y); }
        """,
    "cuda/std/cstdint": """
        namespace cuda { namespace std {
        typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t;
        typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
        typedef unsigned long long uint64_t;
        } }""",
    "cuda/std/type_traits": """
        namespace cuda { namespace std {
        template <class...> struct is_same; template <class...> constexpr bool is_same_v = false;
        template <class...> struct is_integral; template <class...> struct is_floating_point;
        template <class...> struct is_signed; template <class...> struct is_unsigned;
        template <bool, class...> struct enable_if; template <bool, class...> struct conditional;
        } }""",
    "math_constants.h": """
        #define CUDART_INF_F __int_as_float(0x7f800000)
        #define CUDART_NAN_F __int_as_float(0x7fffffff)
        """,
}
# No fast mathematics: outputs are compared with PyTorch's.
OPTIONS = ("-default-device", "-w")
ELF_HEADER, SECTION = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQIIQQ")


def compile_cubin(source: str, arch: str) -> bytes:
    """Machine code of all kernels of a source, from the cache if it was compiled before.

    Raises
    ------
    UserError : NVRTC is not installed.
    Fault : the source is not valid CUDA, or a kernel of it is missing in the result.
    """
    nvrtc = _nvrtc()
    what = "\n".join([str(nvrtc.nvrtcVersion()), arch, *OPTIONS, *HEADERS.values(), source])
    cached = cache_folder("cubin") / f"{hashlib.sha256(what.encode()).hexdigest()}.cubin"
    code = read_optional(cached)
    if code is None:
        code = _compiled(nvrtc, source, arch)
        try:
            make_folder(cached.parent)
            write_atomic(cached, code)
        except WriteError as problem:
            LOG.warning("compiled GPU kernels are not kept: %s", problem)
    expected, found = kernels_in(source), kernels_of(code)
    if found != expected:
        raise Fault(
            f"the machine code for {arch} has the kernels {', '.join(found) or 'none'} and its source "
            f"{', '.join(expected) or 'none'}; delete {cached} and compile again, and report it if that does not help"
        )
    return code


def compile_for_loader(arch: str) -> None:
    """Have TVM call `compile_cubin` for every library with CUDA kernels that it loads."""
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", lambda source: compile_cubin(source, arch), override=True)


def kernels_in(source: str) -> tuple[str, ...]:
    """Names of the kernels that a CUDA source defines, sorted."""
    pattern = r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\('
    return tuple(sorted(set(re.findall(pattern, source))))


def kernels_of(cubin: bytes) -> tuple[str, ...]:
    """Names of the kernels in machine code, sorted: its ELF file has a section ``.text.NAME`` for each."""
    if cubin[:5] != b"\x7fELF\x02":
        return ()
    header = ELF_HEADER.unpack_from(cubin)
    start, count, of_names = header[6], header[12], header[13]
    sections = [SECTION.unpack_from(cubin, start + i * SECTION.size) for i in range(count)]
    names = sections[of_names][4]
    texts = [cubin[names + at : cubin.index(b"\0", names + at)].decode() for at, *_ in sections]
    return tuple(sorted(text.removeprefix(".text.") for text in texts if text.startswith(".text.")))


def cuda_source(executable: Any) -> str:
    """The source of all CUDA kernels in what TVM compiled; empty if there are none."""

    def modules(module: Any) -> Iterator[Any]:
        yield module
        for imported in module.imports:
            yield from modules(imported)

    return "\n".join(m.inspect_source() for m in modules(executable.mod) if m.kind == "cuda")


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as problem:
        raise UserError(
            "compiling for a GPU takes NVIDIA's NVRTC, which comes with PyTorch for CUDA and is not installed here "
            f"({problem}); install it with: pip install cuda-bindings nvidia-cuda-nvrtc"
        ) from problem
    return nvrtc


def _compiled(nvrtc: Any, source: str, arch: str) -> bytes:
    names, texts = [name.encode() for name in HEADERS], [text.encode() for text in HEADERS.values()]
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", len(names), texts, names)
    options = [option.encode() for option in (f"--gpu-architecture={arch}", *OPTIONS)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        log = bytearray(size)
        nvrtc.nvrtcGetProgramLog(program, log)
        lines = log.decode(errors="replace").strip("\0\n ").splitlines()
        first = next((line for line in lines if "error" in line), status.name)
        raise Fault(f"the CUDA kernels do not compile for {arch}: {first.strip()}")
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    code = bytearray(size)
    nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(program)
    return bytes(code)
