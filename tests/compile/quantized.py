"""Kernels of bytes beside an integer reference: random cases, their tensors, and what is wrong with what is made.

Sums are computed by PyTorch in float64, which has every integer below 2^53. What follows is computed in float64 as
well. If all scales are powers of two, a kernel's float32 rounds nothing either, and must make the same number, halves
included. Otherwise it may end on the other side of the middle between two steps: there, and only there, is it allowed
to be one step off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tvm
from tvm import relax

from aap_hw.compile.code.quantized import Quantized
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import INT8, Scale
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.compile.library.build import build_kernel, export_library
from tests.compile.running import Convolution, Pair

GUARD = 64  # bytes before and behind an output that a kernel must not write
# How far from the middle between two steps float32 is sure of the side, in steps. Steps are up to 255, and float32 has
# 24 bits; a few operations are computed one after the other.
UNSURE = 1e-3


@dataclass(frozen=True)
class Case(Convolution):
    """A convolution of bytes; linear if it has the kernel's size 0, and ``exact`` if its scales are powers of two."""

    groups: int = 1
    precision: str = INT8
    extreme: bool = False
    exact: bool = False

    @property
    def is_linear(self) -> bool:
        return self.kernel == (0, 0)

    @property
    def read(self) -> int:
        return 1 if self.depthwise else self.width_in // self.groups

    def key(self) -> KernelKey:
        if self.is_linear:
            key = KernelKey.make("linear", self.size, self.batch, epilogue=self.epilogue)
        else:
            key = super().key().having(groups=self.groups if self.groups > 1 else "")
        return key.at_precision(self.precision)

    def of(self, images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return F.conv2d(images, weights) if self.is_linear else super().of(images, weights)


@dataclass(frozen=True)
class Transposed(Case):
    """A transposed convolution of bytes; ``size`` is that of what it reads."""

    beyond: Pair = (0, 0)

    def key(self) -> KernelKey:
        how = {"kernel": self.kernel, "stride": self.stride, "padding": self.padding, "epilogue": self.epilogue}
        how["output_padding"] = self.beyond if any(self.beyond) else ""
        return KernelKey.make("conv_transpose2d", self.size, self.batch, **how).at_precision(self.precision)

    def of(self, images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(images, weights.transpose(0, 1), None, self.stride, self.padding, self.beyond)


@dataclass(frozen=True)
class Numbers:
    """What a case computes with: uint8 and int8 arrays as PyTorch lays them out, and the model's numbers."""

    image: np.ndarray
    residual: np.ndarray
    model: Quantized


def random_numbers(case: Case) -> Numbers:
    """All bytes are as likely; the step of the output is such that some of it is cut off at both ends."""
    random = np.random.default_rng([case.width_in, case.width_out, *case.size, case.batch])
    image = random.integers(0, 256, (case.batch, case.width_in, *case.size), np.uint8)
    kernel = (1, 1) if case.is_linear else case.kernel
    weight = random.integers(-127, 128, (case.width_out, case.read, *kernel), np.int8)
    if case.extreme:  # the largest products of one sign
        image[:], weight[:] = 255, 127
        weight[::2] = -127
    read = Scale(2.0**-5 if case.exact else 0.037, 0 if case.extreme else int(random.integers(0, 256)))
    weight_scales = random.uniform(0.001, 0.02, case.width_out).astype("float32")
    bias = random.standard_normal(case.width_out).astype("float32")
    if case.exact:
        weight_scales, bias = 2 ** np.round(np.log2(weight_scales)), np.round(bias * 64) / 64
    made, added = Scale(1.0, int(random.integers(0, 256))), Scale(0.05, int(random.integers(0, 256)))
    numbers = Numbers(image, image, Quantized((read, added), made, weight, weight_scales, bias))
    plain = replace(case, epilogue=("bias",))
    spread = float(reference(plain, numbers).std()) + 1e-3
    steps = [2.0 ** round(math.log2(spread / n)) if case.exact else float(np.float32(spread / n)) for n in (64, 50)]
    made, added = (replace(scale, scale=step) for scale, step in zip((made, added), steps, strict=True))
    residual = random.integers(0, 256, reference(plain, numbers).shape, np.uint8)
    scales = (read, added) if "add" in case.epilogue else (read,)
    is_float = case.key().types.made == "float32"
    return Numbers(image, residual, Quantized(scales, None if is_float else made, weight, weight_scales, bias))


def reference(case: Case, numbers: Numbers) -> np.ndarray:
    """What a case makes, as real numbers (N, C, H, W) in float64."""
    model = numbers.model
    assert model.weight is not None
    assert model.weight_scales is not None
    assert model.bias is not None
    read, *added = model.read
    image = torch.from_numpy(numbers.image.astype("float64") - read.zero_point)
    sums = case.of(image, torch.from_numpy(model.weight.astype("float64")))
    assert sums.abs().max() < (2**23 if case.exact else 2**31)
    per_channel = (1, -1, 1, 1)
    value = sums * torch.from_numpy(read.scale * model.weight_scales.astype("float64")).reshape(per_channel)
    for step in case.epilogue:
        match step:
            case "bias":
                value = value + torch.from_numpy(model.bias.astype("float64")).reshape(per_channel)
            case "add":
                residual = numbers.residual.astype("float64") - added[0].zero_point
                value = value + torch.from_numpy(added[0].scale * residual)
            case _:
                value = getattr(F, step)(value)
    result: np.ndarray = value.numpy()
    return result


def wrong_kernels(cases: Sequence[Case], target: CpuTarget) -> list[str]:
    """Compile the kernels into one library, call each, and say of each that is wrong what is wrong with it."""
    functions = [build_kernel(case.address(), target) for case in cases]
    names = [f"kernel_{i}" for i in range(len(cases))]
    code = {n: f.code.with_attr("global_symbol", n) for n, f in zip(names, functions, strict=True)}
    library = tvm.compile(tvm.IRModule(code), target=target.tvm).jit()
    found = []
    for name, function, case in zip(names, functions, cases, strict=True):
        numbers = random_numbers(case)
        assert function.quantized is not None
        arrays = [*images_of(case, numbers), *function.quantized(numbers.model)]
        for array, argument in zip(arrays, function.arguments, strict=True):
            assert (array.shape, str(array.dtype)) == (argument.shape, argument.type), case
        made, is_beside = called(library[name], arrays, function.output_shape, function.output_type)
        expected = reference(case, numbers)
        if is_beside:
            found.append(f"{case} writes beside its output")
        if said := wrong(made.transpose(0, 3, 1, 2), expected, numbers.model.made, exact=case.exact):
            found.append(f"{case} {said}")
    return found


def images_of(case: Case, numbers: Numbers) -> list[np.ndarray]:
    """What a case reads, as the kernel has it."""
    images = [numbers.image if case.planar else numbers.image.transpose(0, 2, 3, 1)]
    return [*images, *([numbers.residual.transpose(0, 2, 3, 1)] if "add" in case.epilogue else [])]


def library_of(cases: Sequence[Case], target: CpuTarget, path: Path) -> None:
    """Write a library in which ``kernel_i`` is a function of what the i-th case reads."""
    library_of_kernels([(case.address(), random_numbers(case).model) for case in cases], target, path)


def library_of_kernels(kernels: Sequence[tuple[Address, Quantized]], target: CpuTarget, path: Path) -> None:
    """The same for any kernels, with what they hold of a model."""
    builder = relax.BlockBuilder()
    for i, (address, model) in enumerate(kernels):
        function = build_kernel(address, target)
        assert function.quantized is not None
        code = builder.add_func(function.code, f"code_{i}")
        read = [argument for argument in function.arguments if argument.role in ("activation", "residual")]
        images = [relax.Var(f"x{n}", relax.TensorType(each.shape, each.type)) for n, each in enumerate(read)]
        constants = [relax.const(array, str(array.dtype)) for array in function.quantized(model)]
        with builder.function(f"kernel_{i}", images):
            made = relax.TensorType(function.output_shape, function.output_type)
            with builder.dataflow():
                output = builder.emit_output(relax.call_tir(code, [*images, *constants], made))
            builder.emit_func_output(output)
    export_library(builder.get(), target, path)


def wrong(
    made: np.ndarray, expected: np.ndarray, scale: Scale | None, *, exact: bool = False, unsure: float = UNSURE
) -> str:
    """What is wrong with what a kernel made in place of real numbers; nothing if it is right.

    Nearer than ``unsure`` steps to the middle between two, either is right.
    """
    if scale is None:
        tolerance = 0.0 if exact else 1e-5 * np.abs(expected).max() + 1e-6
        worst = float(np.abs(made - expected).max())
        return f"is wrong by {worst:.3g} of {tolerance:.3g}" if not worst <= tolerance else ""
    steps = expected / scale.scale
    right = np.clip(np.rint(steps) + scale.zero_point, 0, 255)
    is_unsure = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < (0 if exact else unsure)
    off = np.abs(made.astype(int) - right)
    share = float((off > is_unsure).mean())
    return f"is wrong at {share:.1%}, by {int(off.max())} steps" if share else ""


def called(kernel: Any, arrays: Sequence[np.ndarray], shape: tuple[int, ...], type_: str) -> tuple[np.ndarray, bool]:
    """What a kernel makes, and whether it wrote beside its output or left some of it out."""
    results = []
    for filler in (0, 255):  # what stays as it was differs between the two
        size = int(np.prod(shape)) * np.dtype(type_).itemsize
        spare = np.full(size + 3 * GUARD, filler, np.uint8)
        first = -spare.ctypes.data % GUARD
        memory = spare[first : first + size + 2 * GUARD]
        output = memory[GUARD : GUARD + size].view(type_).reshape(shape)
        kernel(*[tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays], tvm.runtime.from_dlpack(output))
        results.append((output, bool((memory[:GUARD] != filler).any() or (memory[GUARD + size :] != filler).any())))
    (one, beside), (other, beside_too) = results
    return one, beside or beside_too or not np.array_equal(one, other)
