"""Proves that the inner loop of a kernel keeps its sums in registers, on processors with 16 and with 32 of them.

A tile that asks for one register too many still computes what it should, several times slower, and no test of its
results would tell. So the machine code itself is read; a tile that is too large on purpose shows that the reading
would notice.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tvm
from tvm import te, tirx
from tvm.s_tir import Schedule

from aap_hw.compile.cpu.depthwise import LENGTH
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.compile.library.build import build_kernel
from tests.compile.assembly import (
    TARGETS,
    Loop,
    assembly,
    multiplying_loops,
    turning_loops,
    vector_loops,
    whole_vector_multiplications,
)
from tests.compile.running import Convolution

RELU, RELU6 = ("bias", "relu"), ("bias", "relu6")
CONVOLUTIONS = {
    "pointwise_small": Convolution(16, 24, (14, 14), (1, 1), padding=(0, 0), epilogue=RELU6),
    "pointwise_large": Convolution(256, 512, (14, 14), (1, 1), padding=(0, 0), epilogue=("bias", "add", "relu")),
    "3x3": Convolution(64, 64, (28, 28), epilogue=("bias", "add", "relu")),
    "3x3_stride_2": Convolution(64, 128, (28, 28), stride=(2, 2), epilogue=RELU),
    "7x7_first_layer": Convolution(3, 64, (224, 224), (7, 7), (2, 2), (3, 3), epilogue=RELU, planar=True),
    "3x3_width_30": Convolution(30, 30, (14, 14), epilogue=RELU),
    "depthwise_3x3": Convolution(96, 96, (28, 28), epilogue=RELU6, depthwise=True),
    "depthwise_3x3_stride_2": Convolution(96, 96, (28, 28), stride=(2, 2), epilogue=RELU6, depthwise=True),
    "depthwise_5x5": Convolution(96, 96, (14, 14), (5, 5), padding=(2, 2), epilogue=RELU6, depthwise=True),
}
DENSE = ("pointwise_small", "pointwise_large", "3x3", "3x3_stride_2", "7x7_first_layer")
WINOGRAD = ("3x3", "3x3_width_30")
KERNELS = {name: case.address() for name, case in CONVOLUTIONS.items()}
KERNELS["linear"] = Address(KernelKey.make("linear", (), 1, epilogue=("bias",)), (512, 1000))
# Of other families: keys, their widths, and the part of the innermost loops that leaves the stack alone.
OTHERS = {
    "layer_norm 197x1 affine=1 eps=1e-06": ((768, 768), vector_loops),
    "rms_norm 197x1 affine=1 eps=1e-06": ((768, 768), vector_loops),
    "attention - shape=6,197,197,64,64": ((1, 1), multiplying_loops),
    "matmul - shape=6,49,33,57": ((1, 1), vector_loops),
    "resize 28x28 how=linear to=56x56": ((57, 57), vector_loops),
    "gru 50x1": ((384, 128), multiplying_loops),
    "lstm 50x1": ((256, 64), multiplying_loops),
    "conv_transpose2d 24x32 epilogue=bias+relu kernel=4x4 padding=1x1 stride=2x2": ((64, 64), vector_loops),
    "conv_transpose3d 4x14x14 epilogue=bias+relu kernel=2x2x2 stride=2x2x2": ((64, 32), vector_loops),
    "conv3d 4x14x14 epilogue=bias+relu kernel=3x3x3 padding=1x1x1": ((64, 64), vector_loops),
    "reduce - of=mean shape=1,784,64": ((1, 1), vector_loops),
    "grid_sample 14x14 how=bilinear padding=zeros to=14x14": ((57, 57), vector_loops),
    "strided_copy - parts=x[3136*i;28:112*i,28:2*i,i:1]": ((57, 57), vector_loops),
    "elementwise 196x1 constants=c expr=add(x1,mul(c0,gelu(x0))) reads=yc+yc": ((384, 384), vector_loops),
}
# Their constants fill the registers, and LLVM keeps some of them on the stack; what they compute it does not.
FULL = {
    "group_norm 3136x1 affine=1 each=8 eps=1e-05": (64, 64),
    "group_norm 3136x1 affine=1 each=1 eps=1e-05": (57, 57),  # an instance norm
    "axis_softmax - shape=4,49,64": (1, 1),
}


def loops_of(key: str, widths: tuple[int, int], cpu: str, kind: Callable[[str], list[Loop]]) -> list[Loop]:
    address = Address(KernelKey.parse(f"{key} float32 batch=1"), widths)
    loops = kind(assembly(build_kernel(address, TARGETS[cpu]).code, TARGETS[cpu]))
    assert loops
    return loops


@pytest.mark.parametrize(
    "cpu", [cpu if cpu == "avx2" else pytest.param(cpu, marks=pytest.mark.slow) for cpu in TARGETS]
)
def test_the_inner_loops_of_other_families_leave_the_stack_alone(cpu: str) -> None:
    for key, (widths, kind) in OTHERS.items():
        assert [spill for loop in loops_of(key, widths, cpu, kind) for spill in loop.spills] == [], key
    for key, widths in FULL.items():
        assert [spill for loop in loops_of(key, widths, cpu, multiplying_loops) for spill in loop.stored] == [], key


@pytest.mark.parametrize("cpu", TARGETS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_inner_loop_multiplies_whole_vectors_and_leaves_the_stack_alone(kernel: str, cpu: str) -> None:
    target = TARGETS[cpu]
    loops = multiplying_loops(assembly(build_kernel(KERNELS[kernel], target).code, target))
    assert loops, "no loop with a fused multiply-add was found"
    first, *others = loops
    # Transforms of Winograd's way may read constants from the stack.
    is_transformed = kernel in WINOGRAD
    later = [spill for loop in others for spill in (loop.stored if is_transformed else loop.spills)]
    assert [*first.spills, *later] == []
    if cpu == "neon" and kernel in DENSE:
        # With a load into all lanes for each value of the image, 24 of 35 instructions multiplied.
        assert first.fused >= 0.75 * len(first.instructions)
        assert all("[" in line for line in first.instructions if line.startswith("fmla"))


@pytest.mark.parametrize("cpu", TARGETS)
def test_blocks_are_turned_without_leaving_the_registers(cpu: str) -> None:
    address = Address(KernelKey.make("strided_copy", (), 1, parts="x[3136*i;i:1,3136:i]"), (57, 57))
    loops = turning_loops(assembly(build_kernel(address, TARGETS[cpu]).code, TARGETS[cpu]))
    assert loops
    assert [spill for loop in loops for spill in loop.spills] == []


@pytest.mark.parametrize("cpu", TARGETS)
@pytest.mark.parametrize("function", ["gelu(x0)", "exp(x0)", "elu(x0,1,1,1)"])
def test_functions_are_whole_vectors_in_registers(function: str, cpu: str) -> None:
    key = KernelKey.make("elementwise", (196, 1), 1, expr=function, reads=("yc",))
    text = assembly(build_kernel(Address(key, (57, 57)), TARGETS[cpu]).code, TARGETS[cpu])
    loop = multiplying_loops(text)[0]
    assert loop.spills == ()
    assert not [line for line in loop.instructions if line.split()[0] in ("call", "callq", "bl", "blr")]


@pytest.mark.parametrize("cpu", TARGETS)
@pytest.mark.parametrize(
    "vectors", [1, 7, 40, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 4, 8, 9))]
)
def test_depthwise_code_is_not_repeated_for_each_vector_of_channels(vectors: int, cpu: str) -> None:
    target, width = TARGETS[cpu], vectors * TARGETS[cpu].lanes
    case = Convolution(width, width, (28, 28), epilogue=RELU6, depthwise=True)
    text = assembly(build_kernel(Address(case.key(), (width, width)), target).code, target)
    # A tile at the left edge, one at the right edge, and one for all between them.
    assert 2 * 9 * LENGTH < whole_vector_multiplications(text) <= 3 * 9 * LENGTH


@pytest.mark.parametrize("cpu", TARGETS)
def test_a_tile_of_more_sums_than_registers_is_seen_to_spill(cpu: str) -> None:
    target = TARGETS[cpu]
    fits, too_large = (
        multiplying_loops(assembly(outer_product(rows, 4 * target.lanes, target), target))[0]
        for rows in (target.registers // 8, target.registers // 4 + 1)
    )
    # All sums are advanced in the loop that was found; LLVM may do several turns in one.
    assert fits.fused % (target.registers // 2) == 0
    assert too_large.fused % (target.registers + 4) == 0
    assert fits.spills == ()
    # Each of the sums that found no register is read and written once a turn.
    assert len(too_large.spills) >= 4
    assert len(too_large.stored) >= 4


def outer_product(rows: int, columns: int, target: CpuTarget) -> tirx.PrimFunc:
    """A matrix product whose ``rows`` x ``columns`` sums are all meant for registers."""
    left, right = te.placeholder((256, rows), name="left"), te.placeholder((256, columns), name="right")
    k = te.reduce_axis((0, 256), "k")
    sums = te.compute((rows, columns), lambda r, c: te.sum(left[k, r] * right[k, c], axis=k), name="sums")
    schedule = Schedule(tvm.IRModule({"main": te.create_prim_func([left, right, sums])}))
    block = schedule.get_sblock("sums", "main")
    row, column, turn = schedule.get_loops(block)
    vector, lane = schedule.split(column, [None, target.lanes])
    schedule.reorder(turn, row, vector, lane)
    schedule.vectorize(lane)
    schedule.unroll(vector)
    schedule.unroll(row)
    schedule.decompose_reduction(block, turn)
    return schedule.mod["main"].without_attr("global_symbol")
