"""Proves that kernels and networks in half precision are off by what rounding to it makes, and by no more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import nn

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.families.half import has_half_form
from aap_hw.compile.front.partition import partition
from aap_hw.compile.gpu.cubin import compile_cubin, cuda_source, kernels_of
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import BFLOAT16, FLOAT16, HALF
from aap_hw.compile.keys.target import CpuTarget, device_target, half_precision_of, host_options
from aap_hw.compile.library.build import build_kernel
from aap_hw.compile.library.lowering import compile_network
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from tests.compile.assembly import assembly, innermost_loops
from tests.compile.half import Net
from tests.compile.quantized import Case
from tests.compile.running import device, needs_bfloat16, randomise

# Largest error of rounding, as a share of a number: bfloat16 has 8 significant bits, float32 24.
UNIT, FLOAT32_UNIT = 2.0**-8, 2.0**-24
OWN = CpuTarget.of(host_options(), threads=1)


def rounded(array: np.ndarray, type_: str) -> np.ndarray:
    """The nearest numbers of a type, as float64."""
    return array.astype(type_).astype("float64")


@needs_bfloat16
def test_kernels_of_odd_widths_equal_pytorch_up_to_one_rounding() -> None:
    cases = []
    for width in (1, 3, 5, 17, 57, 96):
        cases += [Case(width, 33, (4, 5), (1, 1), padding=(0, 0), epilogue=("bias", "add", "relu"), precision=BFLOAT16)]
        cases += [Case(width, width, (5, 9), depthwise=True, epilogue=("bias", "relu6"), batch=2, precision=BFLOAT16)]
        cases += [Case(7, width, (4, 5), epilogue=("bias", "hardswish"), precision=BFLOAT16)]
        cases += [Case(3, width, (9, 9), (7, 7), (2, 2), (3, 3), precision="bfloat16_float32")]
        cases += [Case(2 * width, 6, (6, 5), (3, 3), dilation=(2, 2), groups=2, batch=2, precision=BFLOAT16)]
        cases += [Case(width, 10, (1, 1), (0, 0), batch=3, precision="bfloat16_float32")]
    cases += [Case(128, 128, (14, 14), precision=BFLOAT16)]  # Winograd's way
    functions = [build_kernel(case.address(), OWN) for case in cases]
    assert {argument.type for f in functions for argument in f.arguments if argument.role == "weight"} == {
        BFLOAT16,
        "float32",
    }
    kernels = compiled(functions)
    made = zip(cases, functions, kernels, strict=True)
    assert [said for case, function, kernel in made if (said := wrong(case, function, kernel))] == []


def compiled(functions: Sequence[KernelFunction]) -> list[Any]:
    code = {f"kernel_{i}": function.code for i, function in enumerate(functions)}
    module = tvm.IRModule({name: each.with_attr("global_symbol", name) for name, each in code.items()})
    library = tvm.compile(module, target=OWN.tvm).jit()
    return [library[name] for name in code]


def wrong(case: Case, function: KernelFunction, kernel: Any) -> str:
    """What is wrong with what a kernel makes; nothing if it is right."""
    random = np.random.default_rng([case.width_in, case.width_out, *case.size])
    size = (1, 1) if case.is_linear else case.kernel
    given = {
        "activation": random.standard_normal((case.batch, case.width_in, *case.size)),
        "weight": random.standard_normal((case.width_out, case.read, *size)),
        "bias": random.standard_normal(case.width_out),
    }
    types = {argument.role: argument.type for argument in function.arguments}
    exact = {role: torch.from_numpy(rounded(array, types[role])) for role, array in given.items()}
    expected = case.of(exact["activation"], exact["weight"]) + exact["bias"].reshape(1, -1, 1, 1)
    sizes = case.of(exact["activation"].abs(), exact["weight"].abs()) + 1
    if types["weight"] == "float32" and not case.depthwise:
        sizes[:] = sizes.max()  # Winograd's way mixes neighbouring outputs before it parts them again
    given["residual"] = random.standard_normal(expected.shape)
    for step in case.epilogue[1:]:
        residual = torch.from_numpy(rounded(given["residual"], BFLOAT16))
        expected = expected + residual if step == "add" else getattr(F, step)(expected)
    arrays = []
    for argument in function.arguments:
        array = given[argument.role].astype("float32")
        if argument.role == "weight":
            assert function.pack is not None
            array = function.pack(array)
        elif argument.role != "bias":
            array = array.transpose(0, 2, 3, 1)
        arrays.append(np.ascontiguousarray(array.astype(argument.type).reshape(argument.shape)))
    output = tvm.runtime.empty(function.output_shape, function.output_type)
    kernel(*[tvm.runtime.tensor(array) for array in arrays], output)
    actual = output.numpy().astype("float64").transpose(0, 3, 1, 2)
    products = case.read * int(np.prod(size))
    allowed = 2 * (products + 4) * FLOAT32_UNIT * sizes.numpy()
    if function.output_type == BFLOAT16:
        allowed = allowed + UNIT * np.abs(expected.numpy())
    share = float((np.abs(actual - expected.numpy()) / allowed).max())
    return f"{case} is off by {share:.2f} of what rounding may make" if not share <= 1 else ""


MACHINES = {
    "znver4": ("x86_64", "vdpbf16ps"),
    "sapphirerapids": ("x86_64", "vdpbf16ps"),
    "cortex-a76": ("aarch64", "8h"),
}


@pytest.mark.parametrize("cpu", MACHINES)
def test_the_inner_loop_multiplies_halves_and_leaves_the_stack_alone(cpu: str) -> None:
    platform, instruction = MACHINES[cpu]
    machine = CpuTarget.of({"kind": "llvm", "mcpu": cpu, "mtriple": f"{platform}-linux-gnu"}, threads=1)
    precision = half_precision_of(machine)
    for case in (
        Case(64, 384, (14, 14), (1, 1), padding=(0, 0), epilogue=("bias", "relu6"), precision=precision),
        Case(57, 113, (14, 14), (1, 1), padding=(0, 0), epilogue=("bias", "add"), precision=precision),
        Case(64, 64, (28, 28), (3, 3), (2, 2), epilogue=("bias", "relu"), precision=precision),
    ):
        loops = innermost_loops(assembly(build_kernel(case.address(), machine).code, machine))
        multiplying = [
            loop
            for loop in loops
            if any(instruction in line and line.startswith(("vdp", "fmla")) for line in loop.instructions)
        ]
        assert multiplying, case
        assert [spill for loop in multiplying for spill in loop.spills] == [], case


def net() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return randomise(Net()), torch.randn(1, 3, 32, 32)


def test_types_agree_from_kernel_to_kernel() -> None:
    model, image = net()
    network = partition(ChannelGraph.trace(model, (image,)), HALF, half=FLOAT16)
    made = {port.name: "float32" for port in network.inputs} | {k.name: k.key.types.made for k in network.kernels}
    wrong = [(k.name, n) for k in network.kernels for n in k.inputs if made[n] != k.key.types.read]
    assert wrong == []
    assert {made[port.name] for port in network.outputs} == {"float32"}
    in_float32 = [k.key.op for k in network.kernels if k.key.types.read == "float32"]
    assert in_float32 == ["to_nhwc", "axis_softmax", "to_nchw"]
    assert [k.name for k in network.kernels if k.weight is not None and not k.key.types.is_half] == []
    assert [k.key.op for k in network.kernels if has_half_form(k.key) and k.key.op == "cast"] == []


@needs_bfloat16
def test_a_network_is_nearer_to_the_exact_one_than_pytorch_in_bfloat16(tmp_path: Path) -> None:
    model, image = net()
    compile_network(model, image, device().target, tmp_path / "half.so", precision=HALF)
    loaded = device().load(tmp_path / "half.so")
    errors = []
    for image in torch.randn(8, 1, 3, 32, 32):
        loaded.set_inputs("main", [image.numpy()])
        made = loaded.run("main")
        with torch.no_grad():
            exact = [each.numpy() for each in net()[0].double()(image.double())]
            theirs = [each.double().numpy() for each in net()[0].bfloat16()(image.bfloat16())]
        errors.append(
            [
                [np.square(each - right).mean() for each in pair]
                for *pair, right in zip(made, theirs, exact, strict=True)
            ]
        )
    for ours, other in np.sqrt(np.mean(errors, axis=0)):
        assert 1e-2 * other < ours < other  # nor is it float32


def test_a_cpu_without_instructions_for_it_is_refused(tmp_path: Path) -> None:
    model, image = net()
    with pytest.raises(UserError, match=r"the CPU of .*haswell.* has no instructions for half precision"):
        compile_network(
            model, image, device_target({"kind": "llvm", "mcpu": "haswell"}, 1), tmp_path / "no.so", precision=HALF
        )
    key = KernelKey.make("relu", (4, 4), 1).at_precision(BFLOAT16)
    machine = device_target({"kind": "llvm", "mcpu": "cortex-a76", "mtriple": "aarch64-linux-gnu"}, 1)
    with pytest.raises(UserError, match=r"relu 4x4 bfloat16 .* has another half precision"):
        build_kernel(Address(key, (8, 8)), machine)
    with pytest.raises(UserError, match=r"relu 4x4 bfloat16 .* no code for GPUs, whose half precision is float16"):
        build_kernel(Address(key, (8, 8)), device_target({"kind": "cuda", "arch": "sm_87"}, 1))


def test_kernels_in_float16_are_valid_code_for_a_gpu() -> None:
    machine = device_target({"kind": "cuda", "arch": "sm_87"}, 1)
    convolution = Case(16, 33, (6, 6), epilogue=("bias", "add", "relu"), precision=FLOAT16)
    keys = [(KernelKey.make(op, (4, 4), 1), "float16") for op in ("add", "global_avg_pool2d")]
    keys += [
        (KernelKey.make("to_nhwc", (4, 4), 1), "float32_float16"),
        (KernelKey.make("cast", (4, 4), 1), "float16_float32"),
    ]
    addresses = [convolution.address(), *[Address(key.at_precision(name), (16, 16)) for key, name in keys]]
    codes = {f"kernel_{i}": build_kernel(address, machine).code for i, address in enumerate(addresses)}
    module = tvm.IRModule({name: code.with_attr("global_symbol", name) for name, code in codes.items()})
    with machine.tvm:
        source = cuda_source(tvm.compile(module, target=machine.tvm))
    assert "half* __restrict__" in source
    assert len(kernels_of(compile_cubin(source, machine.arch))) == len(addresses)


@needs_bfloat16
def test_light_kernels_round_once_what_those_of_float32_make() -> None:
    window = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    keys = [
        KernelKey.make("reduce", (), 1, of="mean", shape="4,9,18", epilogue=("relu",)),
        KernelKey.make("affine", (6, 9), 2, epilogue=("relu",)),
        KernelKey.make("concat", (6, 9), 2, parts=2, epilogue=("affine", "silu")),
        KernelKey.make("pad", (6, 9), 2, padding=(1, 2), padding_end=(3, 0), value=0.5),
        KernelKey.make("layer_norm", (6, 9), 2, affine="1", eps=1e-5),
        KernelKey.make("softmax", (), 2),
        KernelKey.make("conv_transpose2d", (6, 9), 1, epilogue=("bias", "relu"), dilation=(1, 1), **window),
        KernelKey.make("avg_pool2d", (6, 9), 2, **window),
    ]
    names = "float32", BFLOAT16
    functions = [build_kernel(Address(key.at_precision(name), (18, 18)), OWN) for key in keys for name in names]
    kernels = compiled(functions)
    for i, key in enumerate(keys):
        random, made = np.random.default_rng(i), list[np.ndarray]()
        arrays = [rounded(random.uniform(0, 1, a.shape), BFLOAT16) for a in functions[2 * i].arguments]
        for function, kernel in zip(functions[2 * i : 2 * i + 2], kernels[2 * i : 2 * i + 2], strict=True):
            output = tvm.runtime.empty(function.output_shape, function.output_type)
            types = [argument.type for argument in function.arguments]
            kernel(*[tvm.runtime.tensor(a.astype(type_)) for a, type_ in zip(arrays, types, strict=True)], output)
            made.append(output.numpy().astype("float64"))
        exact, once = made
        assert (once == rounded(exact, BFLOAT16)).all(), key
