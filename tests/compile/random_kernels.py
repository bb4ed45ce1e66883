"""Kernels on random tensors beside PyTorch in float64, and how far float32 may be from it.

Many kernels are compiled into one library, so that hundreds of them take seconds. Every tensor lies between two
stretches of NaN: what is read beside it spoils a sum, and what is written beside it is found there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
import tvm

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import DeviceTarget
from aap_hw.compile.library.build import build_kernel
from tests.compile.running import Convolution, as_pitched, compiled, target

GUARD = 64  # float32 values before and behind a tensor; a multiple of the alignment that compiled code relies on
HALF_ULP = 2.0**-24
# Activations that do more than clip: the steepest is hard swish before it ends, and e^x is within 3e-7 of its size.
SMOOTH, STEEPEST, EXPONENTIAL = {"sigmoid", "silu", "hardsigmoid", "hardswish"}, 1.5, 1e-6


class Linear(Convolution):
    """A linear layer: to PyTorch and to the kernel alike a convolution of one pixel, but under its own key."""

    def key(self) -> KernelKey:
        return KernelKey.make("linear", (), self.batch, epilogue=self.epilogue)


def linear(width_in: int, width_out: int, epilogue: tuple[str, ...] = ("bias",), batch: int = 1) -> Linear:
    return Linear(width_in, width_out, (1, 1), (1, 1), (1, 1), (0, 0), (1, 1), epilogue, batch)


def wrong_kernels(cases: Sequence[Convolution], on: DeviceTarget | None = None) -> list[str]:
    """Compile the kernels, for this machine or ``on`` a GPU, call each, and say of each wrong one what is wrong."""
    functions = [build_kernel(case.address(), on or target()) for case in cases]
    found = []
    for kernel, function, case in zip(compiled(functions), functions, cases, strict=True):
        tensors = random_tensors(case)
        memory, output = guarded(np.full(function.output_shape, np.nan, "float32"))
        kernel(*[guarded(array)[1] for array in packed(function, case, tensors)], output)
        expected, tolerance = reference(case, tensors)
        # Read from the memory itself, which shows that the tensor is that memory and not a copy.
        result = memory[GUARD:-GUARD].reshape(function.output_shape)
        error = abs(result[..., : case.width_out].transpose(0, 3, 1, 2) - expected)
        worst = float((error / tolerance).max())
        beside = memory[:GUARD], memory[-GUARD:], result[..., case.width_out :]
        if not all(np.isnan(untouched).all() for untouched in beside):
            found.append(f"{case} writes beside its output")
        elif not worst <= 1:
            found.append(f"{case} is wrong by {worst:.3g} tolerances")
    return found


def random_tensors(case: Convolution) -> dict[str, np.ndarray]:
    """A kernel's tensors as PyTorch lays them out; sums are a few units large, so that relu6 clips both ways."""
    random = np.random.default_rng([case.width_in, case.width_out, *case.size])
    image = random.standard_normal((case.batch, case.width_in, *case.size))
    spread = 4 / math.sqrt(case.read * math.prod(case.kernel))
    weight = spread * random.standard_normal((case.width_out, case.read, *case.kernel))
    output_shape = convolve(case, image, weight).shape
    tensors = {
        "activation": image,
        "weight": weight,
        "bias": random.standard_normal(case.width_out),
        "residual": random.standard_normal(output_shape),
    }
    return {role: array.astype("float32") for role, array in tensors.items()}


def reference(case: Convolution, tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel computes, in float64, and how far float32 may be from it.

    A sum of n products has n roundings on its way, each of at most half a unit in the last place of a partial sum,
    which is no larger than the sum of the sizes of its terms: n * 2^-24 * sizes at worst. Roundings of either sign
    cancel, and of many of them about sqrt(n) remain (Higham and Mary, 2019); six times that was never seen to be
    passed. Bias and residual are two more terms. Clipping never adds to an error; other activations are a little
    steeper than the identity, and exponentials have an error of their own.
    """
    image, weight, bias, residual = (
        tensors[role].astype("float64") for role in ("activation", "weight", "bias", "residual")
    )
    bias = bias[:, None, None]
    terms = math.prod(weight.shape[1:])
    value = convolve(case, image, weight)
    sizes = convolve(case, abs(image), abs(weight)) + abs(bias) + abs(residual)
    if (case.kernel, case.stride, case.dilation, case.depthwise) == ((3, 3), (1, 1), (1, 1), False):
        # Winograd's way mixes neighbouring outputs, of which those at the edge may have next to no terms.
        sizes = np.broadcast_to(sizes.max((2, 3), keepdims=True), sizes.shape)
    for step in case.epilogue:
        match step:
            case "bias":
                value = value + bias
            case "add":
                value = value + residual
            case _:
                value = getattr(F, step)(torch.from_numpy(value)).numpy()
    tolerance = (min(terms, 6 * math.sqrt(terms)) + 2) * HALF_ULP * sizes
    return value, (STEEPEST * tolerance + EXPONENTIAL * abs(value) if set(case.epilogue) & SMOOTH else tolerance)


def convolve(case: Convolution, image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    result: np.ndarray = case.of(torch.from_numpy(image), torch.from_numpy(weight)).numpy()
    return result


def packed(function: KernelFunction, case: Convolution, tensors: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The arguments of a kernel, in its order and layout, as a network would hand them over."""
    assert function.pack is not None
    image = tensors["activation"]
    arrays = {
        "activation": image if case.planar else image.transpose(0, 2, 3, 1),
        "residual": tensors["residual"].transpose(0, 2, 3, 1),
        "weight": function.pack(tensors["weight"]),
        "bias": tensors["bias"],
    }
    return [as_pitched(arrays[argument.role], argument.shape) for argument in function.arguments]


def guarded(array: np.ndarray) -> tuple[np.ndarray, tvm.runtime.Tensor]:
    """Memory that is NaN but for its middle, where the array lies, and that middle as a tensor."""
    spare = np.full(array.size + 3 * GUARD, np.nan, "float32")
    first = -spare.ctypes.data // 4 % GUARD
    memory = spare[first : first + array.size + 2 * GUARD]
    middle = memory[GUARD : GUARD + array.size].reshape(array.shape).view(array.dtype)
    middle[...] = array
    return memory, tvm.runtime.from_dlpack(middle)
