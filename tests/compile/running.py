"""Running one kernel, or one compiled network, beside PyTorch in float64.

The reference is written with PyTorch's own calls from the sizes of a case; nothing of it is read off a kernel key.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor, nn

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.families.elementwise import ACTIVATIONS
from aap_hw.compile.gpu.series import in_series
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import BFLOAT16
from aap_hw.compile.keys.target import CpuTarget, DeviceTarget, half_precision_of, host_options
from aap_hw.compile.library.build import build_kernel
from aap_hw.compile.library.lowering import compile_network
from aap_hw.device import load_profile
from aap_hw.device.connection import LocalDevice
from aap_hw.errors import UserError

Pair = tuple[int, int]

# What a network can fuse behind a convolution.
EPILOGUES = [
    ("bias", *added, *activation) for added in ((), ("add",)) for activation in ((), *((name,) for name in ACTIVATIONS))
]


@functools.cache
def device(threads: int = 1) -> LocalDevice:
    """This machine, with that many threads for its networks."""
    return LocalDevice(load_profile("x86").model_copy(update={"threads": threads}))


def target(threads: int = 1) -> CpuTarget:
    return device(threads).target


def _has_bfloat16() -> bool:
    try:
        return half_precision_of(CpuTarget.of(host_options(), threads=1)) == BFLOAT16
    except UserError:
        return False


needs_bfloat16 = pytest.mark.skipif(not _has_bfloat16(), reason="this CPU has no AVX512-BF16")


@dataclass(frozen=True)
class Convolution:
    """A convolution with its epilogue, at its widths."""

    width_in: int
    width_out: int
    size: Pair = (6, 8)
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)
    epilogue: tuple[str, ...] = ("bias",)
    batch: int = 1
    planar: bool = False
    depthwise: bool = False
    pitched: tuple[str, ...] = ()

    def address(self) -> Address:
        return Address(self.key(), (self.width_in, self.width_out))

    @property
    def read(self) -> int:
        """Channels that each output reads."""
        return 1 if self.depthwise else self.width_in

    def of(self, images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What PyTorch makes of images, with weights (C_out, C_in / groups, KH, KW)."""
        groups = self.width_in // self.read
        return F.conv2d(images, weights, None, self.stride, self.padding, self.dilation, groups)

    def key(self) -> KernelKey:
        return KernelKey.make(
            "depthwise_conv2d" if self.depthwise else "conv2d",
            self.size,
            self.batch,
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            epilogue=self.epilogue,
            layout="nchw" if self.planar else "",
            pitched=self.pitched,
        )


def assert_convolutions_equal_pytorch(
    cases: Sequence[Convolution], threads: int = 1, on: DeviceTarget | None = None
) -> None:
    """Compare kernels for this machine, or some ``on`` a GPU, with PyTorch; all are compiled together."""
    functions = [build_kernel(case.address(), on or target(threads)) for case in cases]
    kernels = compiled(functions)
    made = zip(cases, functions, kernels, strict=True)
    assert [case for case, function, kernel in made if not _is_right(case, function, kernel)] == []


def _is_right(case: Convolution, function: KernelFunction, kernel: Any) -> bool:
    random = np.random.default_rng(7)
    groups = case.width_in if case.depthwise else 1
    image = random.standard_normal((case.batch, case.width_in, *case.size)).astype("float32")
    weight = random.standard_normal((case.width_out, case.width_in // groups, *case.kernel)).astype("float32")
    bias = random.standard_normal(case.width_out).astype("float32")

    def convolve(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> torch.Tensor:
        x, w, b = (torch.from_numpy(array).double() for array in (x, w, b))
        return F.conv2d(x, w, b, case.stride, case.padding, case.dilation, groups)

    expected = convolve(image, weight, bias)
    # A sum in float32 differs from the exact one by a multiple of the sum of its terms' sizes.
    sizes = convolve(abs(image), abs(weight), abs(bias))
    if (case.kernel, case.stride, case.dilation) == ((3, 3), (1, 1), (1, 1)):
        sizes[:] = sizes.max()  # Winograd's way mixes neighbouring outputs before it parts them again
    residual = random.standard_normal(expected.shape).astype("float32")
    for step in case.epilogue[1:]:
        expected = after(step, expected, torch.from_numpy(residual).double())
    actual = call(
        function,
        kernel,
        activation=image if case.planar else image.transpose(0, 2, 3, 1),
        residual=residual.transpose(0, 2, 3, 1),
        weight=weight,
        bias=bias,
    )[..., : case.width_out]
    difference = np.abs(actual.transpose(0, 3, 1, 2) - expected.numpy())
    return difference.shape == expected.shape and bool((difference <= 2e-6 * (1 + sizes.numpy())).all())


def after(step: str, value: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """What a step of an epilogue makes of a value."""
    if step == "add":
        return value + residual
    result: torch.Tensor = getattr(F, step)(value)
    return result


def call(function: KernelFunction, kernel: Any = None, **given: np.ndarray) -> np.ndarray:
    """Pack the weights of a kernel as a network would, and call it once; it is compiled unless it is given compiled."""
    arrays = []
    for argument in function.arguments:
        array = given[argument.role]
        if argument.role == "weight":
            assert function.pack is not None
            array = function.pack(array)
        arrays.append(np.ascontiguousarray(as_pitched(array, argument.shape)))
    # Whatever the kernel fails to write stays visible.
    output = tvm.runtime.tensor(np.full(function.output_shape, np.nan, "float32"))
    (kernel or compiled([function])[0])(*[tvm.runtime.tensor(array) for array in arrays], output)
    result: np.ndarray = output.numpy()
    return result


def called(kernel: Any, function: KernelFunction, inputs: Sequence[torch.Tensor]) -> np.ndarray:
    """What a compiled kernel makes of arrays in calling order."""
    output = tvm.runtime.tensor(np.full(function.output_shape, np.nan, "float32"))
    kernel(*[tvm.runtime.tensor(np.ascontiguousarray(each.numpy(), "float32")) for each in inputs], output)
    result: np.ndarray = output.numpy()
    return result


def as_pitched(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array with NaN behind the channels of each pixel, as many as the shape asks for."""
    gap = [(0, wanted - extent) for wanted, extent in zip(shape, array.shape, strict=True)]
    assert not any(after for _, after in gap[:-1])
    return np.pad(array, gap, constant_values=np.nan)


def compiled(functions: Sequence[KernelFunction]) -> list[Any]:
    """All of them in one library for this machine's CPU, which is much quicker than one by one."""
    codes = {f"kernel_{i}": in_series(function.code) for i, function in enumerate(functions)}
    module = tvm.IRModule({name: code.with_attr("global_symbol", name) for name, code in codes.items()})
    library = tvm.compile(module, target=target().tvm).jit()
    return [library[name] for name in codes]


def outputs(model: nn.Module, image: torch.Tensor, folder: Path, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """What the compiled network and PyTorch make of an image."""
    library = folder / f"{type(model).__name__}.so"
    compile_network(model, image, target(threads), library)
    loaded = device(threads).load(library)
    loaded.set_inputs("main", [image.numpy()])
    with torch.no_grad():
        return loaded.run("main")[0], model.eval()(image).numpy()


def assert_compiled_equals_pytorch(
    model: nn.Module, image: torch.Tensor, folder: Path, threads: int = 1, tolerance: float = 1e-5
) -> None:
    """The largest difference is a tiny share of the spread of PyTorch's output, and that is not nothing."""
    actual, expected = outputs(model, image, folder, threads)
    assert actual.shape == expected.shape
    spread = expected.std()
    assert spread > 1e-3
    assert np.abs(actual - expected).max() <= tolerance * max(spread, np.abs(expected).max())


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and an affine part that differ from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                assert tensor is not None
                tensor.data.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return model.eval()


@dataclass(frozen=True)
class OneSided(Convolution):
    """A convolution with other padding behind the image than before it."""

    ends: Pair = (0, 0)

    def of(self, images: Tensor, weights: Tensor) -> Tensor:
        (top, left), (bottom, right) = self.padding, self.ends
        padded, groups = F.pad(images, (left, right, top, bottom)), self.width_in // self.read
        return F.conv2d(padded, weights, None, self.stride, 0, self.dilation, groups)

    def key(self) -> KernelKey:
        return super().key().having(padding_end=self.ends)


def compiled_outputs(model: nn.Module, image: Tensor, library: Path, threads: int = 1) -> list[np.ndarray]:
    compile_network(model, image, target(threads), library)
    loaded = device(threads).load(library)
    loaded.set_inputs("main", [image.numpy()])
    return loaded.run("main")


def assert_alike(actual: list[np.ndarray], expected: list[Tensor]) -> None:
    assert [each.shape for each in actual] == [tuple(each.shape) for each in expected]
    for here, there in zip(actual, expected, strict=True):
        assert there.numel() == 1 or there.std() > 1e-3
        np.testing.assert_allclose(here, there.numpy(), rtol=0, atol=1e-5 * float(there.abs().max()))
