"""Proves that kernels of bytes equal an integer reference at any width, with and without instructions for bytes."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.code.quantized import Quantized
from aap_hw.compile.cpu.isa import has_features
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import FLOAT32_INT8, INT8, INT8_FLOAT32, Scale
from aap_hw.compile.keys.target import CpuTarget, GpuTarget, host_options
from aap_hw.compile.library.build import build_kernel
from aap_hw.errors import UserError
from tests.compile.assembly import Loop, assembly, innermost_loops
from tests.compile.quantized import Case, Transposed, called, random_numbers, reference, wrong, wrong_kernels

ODD_WIDTHS = (1, 3, 5, 17, 57, 96)


CPUS = {"avx2": "haswell", "avxvnni": "alderlake"}


def on(name: str) -> CpuTarget:
    """This machine, with all it has or with AVX2 at most, beside which AVX-VNNI multiplies bytes."""
    options = host_options()
    return CpuTarget.of(options if name == "own" else {**options, "mcpu": CPUS[name]}, threads=1)


needs_avx_vnni = pytest.mark.skipif(not has_features(on("own"), "avxvnni"), reason="this CPU has no AVX-VNNI")
TARGETS = ("own", "avx2", pytest.param("avxvnni", marks=needs_avx_vnni))
OF_A_LIBRARY = 12
USUAL = 42  # of the option --random-kernels
CURVED = {"hardswish", "silu"}  # which float32 rounds


@st.composite
def cases(draw: st.DrawFn) -> Case:
    widths, precision = st.integers(1, 70), draw(st.sampled_from([INT8, INT8, INT8, INT8_FLOAT32]))
    added, last = (
        draw(st.sampled_from([(), ("add",)])),
        draw(st.sampled_from([(), ("relu",), ("relu6",), ("hardswish",)])),
    )
    middle: tuple[str, ...] = draw(st.sampled_from([(), (), ("relu",), ("silu",)]))
    epilogue, batch = ("bias", *middle, *added, *last), draw(st.integers(1, 2))
    exact = CURVED.isdisjoint(epilogue)
    kind = draw(
        st.sampled_from(["dense", "dense", "depthwise", "depthwise", "grouped", "pointwise", "linear", "transposed"])
    )
    if kind == "linear":
        of_linear = draw(widths), draw(widths), (1, 1), (0, 0)
        return Case(*of_linear, epilogue=epilogue, batch=batch, precision=precision, exact=exact)

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    if kind == "transposed":
        kernel, stride = pair(1, 5), pair(1, 3)
        padding = tuple(draw(st.integers(0, (k - 1) // 2)) for k in kernel)
        beyond = tuple(draw(st.integers(0, s - 1)) for s in stride)
        how = {"epilogue": epilogue, "batch": batch, "precision": precision, "exact": exact}
        return Transposed(draw(widths), draw(widths), pair(1, 9), kernel, stride, padding, beyond=beyond, **how)

    kernel = (1, 1) if kind == "pointwise" else draw(st.sampled_from([(3, 3), (5, 5), (7, 7), (1, 1), (2, 4), (1, 5)]))
    padding, dilation = pair(0, 2), draw(st.sampled_from([(1, 1), (1, 1), (2, 2)]))
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    height, width = (draw(st.integers(low, low + 12)) for low in smallest)
    groups = draw(st.integers(2, 4)) if kind == "grouped" else 1
    width_in = draw(widths) if groups == 1 else groups * draw(st.integers(1, 20))
    made = {"depthwise": width_in * draw(st.sampled_from([1, 1, 1, 2])), "grouped": groups * draw(st.integers(1, 20))}
    return Case(
        width_in,
        made.get(kind) or draw(widths),
        (height, width),
        kernel,
        pair(1, 2),
        padding,
        dilation,
        epilogue,
        batch,
        planar=draw(st.booleans()),
        depthwise=kind == "depthwise",
        groups=groups,
        precision=precision,
        exact=exact,
    )


@pytest.mark.parametrize("name", TARGETS)
def test_random_kernels_equal_an_integer_reference(name: str, pytestconfig: pytest.Config) -> None:
    """A dozen; if more than usual are asked for, as many on all that this machine has, and a quarter with less."""
    asked = pytestconfig.getoption("random_kernels")
    libraries = asked // OF_A_LIBRARY // (1 if name == "own" else 4) if asked > USUAL else 1

    @settings(max_examples=libraries, derandomize=True, database=None, phases=[Phase.generate])
    @given(some=st.lists(cases(), min_size=OF_A_LIBRARY, max_size=OF_A_LIBRARY, unique=True))
    def compiled_and_compared(some: list[Case]) -> None:
        assert wrong_kernels(some, on(name)) == []

    compiled_and_compared()


@pytest.mark.slow  # the dozen random ones have odd widths, too
@pytest.mark.parametrize("name", TARGETS)
def test_kernels_of_odd_widths_equal_an_integer_reference(name: str) -> None:
    some = []
    for width in ODD_WIDTHS:
        some += [Case(width, 33, (4, 5), (1, 1), padding=(0, 0), epilogue=("bias", "add", "relu"))]
        some += [Case(width, width, (5, 9), depthwise=True, epilogue=("bias", "relu6"), batch=2)]
    some += [Case(7, width, (4, 5), epilogue=("bias", "relu")) for width in ODD_WIDTHS]
    for widths, kernel, stride, padding in (((17, 37), 4, 2, 1), ((3, 1), 2, 3, 0), ((24, 5), 3, 2, 1)):
        how = (kernel, kernel), (stride, stride), (padding, padding)
        some += [Transposed(*widths, (4, 5), *how, epilogue=("bias", "relu"), batch=2, beyond=(1, 0))]
    # All windows lie above or below the image, all in one tile.
    some += [Case(43, 86, (1, 11), (1, 1), (2, 2), (1, 0), depthwise=True, epilogue=("bias",))]
    some += [Case(20, 97, (4, 5), (1, 1), padding=(0, 0), epilogue=("bias", name)) for name in ("silu", "sigmoid")]
    assert wrong_kernels(some, on(name)) == []


@pytest.mark.parametrize("name", TARGETS)
def test_no_sum_saturates(name: str) -> None:
    extremes = [
        Case(64, 16, (3, 3), padding=(0, 0), extreme=True, precision=INT8_FLOAT32),
        Case(64, 64, (5, 5), (5, 5), padding=(0, 0), extreme=True, precision=INT8_FLOAT32, depthwise=True),
        Case(4096, 32, (1, 1), (0, 0), extreme=True, precision=INT8_FLOAT32),
    ]
    assert wrong_kernels(extremes, on(name)) == []


# CPUs without instructions for integers in their longest vectors, and the longest that have them.
IN_PIECES = {"sandybridge": ([], "xmm"), "skylake-avx512": (["-avx512bw"], "ymm")}


@pytest.mark.parametrize("cpu", [pytest.param("sandybridge", marks=pytest.mark.slow), "skylake-avx512"])
def test_vectors_without_instructions_for_integers_are_multiplied_in_pieces(cpu: str) -> None:
    """As in a virtual machine that hides AVX2."""
    features, register = IN_PIECES[cpu]
    options = {"kind": "llvm", "mcpu": cpu, "mtriple": "x86_64-linux-gnu", "mattr": features}
    machine = CpuTarget.of(options, threads=1)
    some = [Case(7, 33, (3, 4), epilogue=("bias", "relu")), Case(40, 40, (5, 9), depthwise=True)]
    rounding = Address(KernelKey.make("quantize", (8, 8), 1).at_precision(FLOAT32_INT8), (96, 96))
    addresses = [*(case.address() for case in some), rounding]
    text = "".join(assembly(build_kernel(address, machine).code, machine) for address in addresses)
    assert max(line.split("%")[-1][:3] for line in text.splitlines() if "vpmaddwd" in line) == register
    if cpu == "sandybridge":
        assert wrong_kernels(some, machine) == []


MACHINES = {
    "haswell": ("x86_64", "vpmaddwd"),
    "skylake-avx512": ("x86_64", "vpmaddwd"),
    "alderlake": ("x86_64", "vpdpbusd"),
    "znver4": ("x86_64", "vpdpbusd"),
    "cortex-a72": ("aarch64", "sadalp"),
    "cortex-a76": ("aarch64", "sdot"),
    "neoverse-v2": ("aarch64", "usdot"),
}


@pytest.mark.parametrize(
    "cpu",
    [
        # One for each instruction; the others have those of one of them.
        pytest.param(cpu, marks=pytest.mark.slow) if cpu in ("skylake-avx512", "znver4") else cpu
        for cpu in MACHINES
    ],
)
def test_the_inner_loop_multiplies_bytes_and_leaves_the_stack_alone(cpu: str) -> None:
    platform, instruction = MACHINES[cpu]
    machine = CpuTarget.of({"kind": "llvm", "mcpu": cpu, "mtriple": f"{platform}-linux-gnu"}, threads=1)
    for case in (
        Case(64, 384, (14, 14), (1, 1), padding=(0, 0), epilogue=("bias", "relu6")),
        Case(57, 113, (14, 14), (1, 1), padding=(0, 0), epilogue=("bias", "add")),
        Case(64, 64, (28, 28), epilogue=("bias", "relu")),
    ):
        loops = innermost_loops(assembly(build_kernel(case.address(), machine).code, machine))
        multiplying = [loop for loop in loops if any(instruction in line for line in loop.instructions)]
        assert multiplying, case
        assert [spill for loop in multiplying for spill in loop.spills] == [], case


@pytest.mark.parametrize(
    "case",
    [
        Case(3, 64, (30, 32), (7, 7), (2, 2), (3, 3), epilogue=("bias", "relu")),
        Case(57, 113, (14, 14), (1, 1), padding=(0, 0), epilogue=("bias", "add")),
    ],
)
def test_on_arm_a_copied_image_leaves_little_to_do_beside_sdot(case: Case) -> None:
    """Its bytes are signed already, and one load brings those of four steps, whatever the width."""
    machine = CpuTarget.of({"kind": "llvm", "mcpu": "cortex-a76", "mtriple": "aarch64-linux-gnu"}, threads=1)
    found = []
    for loop in innermost_loops(assembly(build_kernel(case.address(), machine).code, machine)):
        products = sum(line.startswith("sdot") for line in loop.instructions)
        if products:
            assert not loop.spills
            assert not any(line.startswith("eor") for line in loop.instructions)
            found.append(len(loop.instructions) / products)
    assert found
    assert max(found) < 1.3


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize(("function", "step"), [("sigmoid", "fdiv"), ("silu", "srsra")])
def test_on_arm_a_function_of_many_steps_has_a_loop_of_its_own(function: str, step: str, depthwise: bool) -> None:
    """There it keeps its numbers in registers. In the loop that multiplies, the sums would be moved out for them."""
    machine = CpuTarget.of({"kind": "llvm", "mcpu": "cortex-a76", "mtriple": "aarch64-linux-gnu"}, threads=1)
    how = {"padding": (1, 1), "depthwise": True} if depthwise else {"kernel": (1, 1), "padding": (0, 0)}
    case = Case(80, 80, (14, 14), epilogue=("bias", function), **how)
    loops = innermost_loops(assembly(build_kernel(case.address(), machine).code, machine))

    def have(name: str) -> list[Loop]:
        return [loop for loop in loops if any(line.startswith(name) for line in loop.instructions)]

    assert have("sdot")
    (own,) = have(step)
    assert own not in have("sdot")
    assert own.stored == ()


@pytest.mark.parametrize("cpu", ["alderlake", "znver4", "neoverse-v2"])
def test_the_loop_of_a_depthwise_kernel_stores_nothing_beside_its_output(cpu: str) -> None:
    platform, instruction = MACHINES[cpu]
    machine = CpuTarget.of({"kind": "llvm", "mcpu": cpu, "mtriple": f"{platform}-linux-gnu"}, threads=1)
    case = Case(96, 96, (28, 28), depthwise=True, epilogue=("bias", "relu6"))
    loops = innermost_loops(assembly(build_kernel(case.address(), machine).code, machine))
    multiplying = [loop for loop in loops if any(instruction in line for line in loop.instructions)]
    along_a_row = min(multiplying, key=lambda loop: len(loop.instructions))
    assert sum(instruction in line for line in along_a_row.instructions) in (12, 24)  # of one row of pixels, or of two
    assert along_a_row.stored == ()


def test_one_product_left_out_is_seen() -> None:
    case = Case(70, 16, (6, 6))
    numbers = random_numbers(case)
    model, expected = numbers.model, reference(case, numbers)
    assert model.made is not None
    assert model.weight is not None
    right = np.clip(np.rint(expected / model.made.scale) + model.made.zero_point, 0, 255)
    assert wrong(right, expected, model.made) == ""
    model.weight[:, 0, 0, 0] = 0
    assert "wrong" in wrong(right, reference(case, numbers), model.made)


def test_halves_are_rounded_to_even_before_the_zero_point_is_added() -> None:
    """A sum of one product: 0.5, 1.5, 2.5 steps and so on, and a zero point that is odd."""
    key = KernelKey.make("linear", (), 1, epilogue=("bias",)).at_precision(INT8)
    function = build_kernel(Address(key, (1, 16)), on("own"))
    model = Quantized(
        (Scale(1.0, 0),), Scale(2.0, 3), np.arange(16, dtype=np.int8).reshape(16, 1, 1, 1), np.ones(16, "float32")
    )
    assert function.quantized is not None
    made = called_once(function, np.ones((1, 1, 1, 1), np.uint8), *function.quantized(model))
    assert made.ravel().tolist() == [round(i / 2) + 3 for i in range(16)]


def called_once(function: KernelFunction, *arrays: np.ndarray) -> np.ndarray:
    code = tvm.IRModule({"kernel": function.code.with_attr("global_symbol", "kernel")})
    kernel = tvm.compile(code, target=on("own").tvm).jit()["kernel"]
    return called(kernel, arrays, function.output_shape, function.output_type)[0]


def test_a_sum_that_overflows_is_refused() -> None:
    key = KernelKey.make("linear", (), 1, epilogue=("bias",)).at_precision(INT8)
    function = build_kernel(Address(key, (70_000, 1)), on("own"))
    weight = np.full((1, 70_000, 1, 1), 127, np.int8)
    assert function.quantized is not None
    with pytest.raises(UserError, match="32 bits"):
        function.quantized(Quantized((Scale(1.0, 0),), Scale(1.0, 0), weight, np.ones(1, "float32")))


def test_what_has_no_code_in_a_precision_is_refused() -> None:
    with pytest.raises(UserError, match="layer_norm does not compute in int8"):
        build_kernel(Address(KernelKey.make("layer_norm", (4, 4), 1).at_precision(INT8), (8, 8)), on("own"))
    gpu = GpuTarget.of({"kind": "cuda", "arch": "sm_87"})
    with pytest.raises(UserError, match="no code for GPUs"):
        build_kernel(Case(8, 8).address(), gpu)
    other = CpuTarget.of({"kind": "llvm", "mtriple": "riscv64-linux-gnu", "mcpu": "generic"}, threads=1)
    with pytest.raises(UserError, match=r"no kernels of bytes for the CPU of .*riscv64"):
        build_kernel(Case(8, 8).address(), other)
