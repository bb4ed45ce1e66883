"""Proves that a kernel makes NaN of NaN where PyTorch does, so that a broken sensor or network does not look sound.

And that it makes of infinity what PyTorch makes of it. Max pooling, reductions to extreme values and the larger of two
computed values keep NaN on 64-bit Arm alone, which machine code is read for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.families.elementwise import ACTIVATIONS
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.library.build import build_kernel
from aap_hw.graph import ChannelGraph
from tests.compile.assembly import TARGETS, assembly
from tests.compile.running import Convolution, call, called, compiled, target

CHANNELS = 19
INF, NAN = float("inf"), float("nan")
VALUES = torch.tensor([NAN, INF, -INF, 1.0, -0.5, 0.0, -100.0, 100.0])
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu(x0)": F.relu,
    "relu6(x0)": F.relu6,
    "clamp(x0,-1,2)": lambda x: F.hardtanh(x, -1, 2),
    "maximum(x0,-1)": lambda x: x.clamp_min(-1),
    "minimum(3,x0)": lambda x: x.clamp_max(3),
    "where(le(x0,0.1),0.2,x0)": lambda x: F.threshold(x, 0.1, 0.2),
    "where(le(abs(x0),0.7),0,x0)": lambda x: F.hardshrink(x, 0.7),
    "hardsigmoid(x0)": F.hardsigmoid,
    "hardswish(x0)": F.hardswish,
    "sigmoid(x0)": torch.sigmoid,
    "tanh(x0)": torch.tanh,
    "erf(x0)": torch.erf,
    "gelu(x0)": F.gelu,
    "exp(x0)": torch.exp,
    "isnan(x0)": lambda x: x.isnan().double(),
    "log(x0)": torch.log,
    "log1p(x0)": torch.log1p,
    "div(x0,mul(x0,0))": lambda x: x / (x * 0),
    "quotient(mul(x0,-0),0)": lambda x: x * -0.0 / 0,
    "remainder(x0,0)": lambda x: x % 0.0,
    "softplus(x0,1,20)": F.softplus,
    "log_sigmoid(x0)": F.logsigmoid,
    "elu(x0,1,1,1)": F.elu,
    "pow(x0,5)": lambda x: x**5,
    "pow(x0,-2)": lambda x: x**-2,
    "pow(2,x0)": lambda x: 2**x,
}
# Of infinity they make numbers, 0 or infinity, where PyTorch makes infinity or NaN.
FINITE: dict[str, Callable[[Tensor], Tensor]] = {
    "expm1(x0)": torch.expm1,
    "silu(x0)": F.silu,
    "gelu_tanh(x0)": lambda x: F.gelu(x, approximate="tanh"),
    "mish(x0)": F.mish,
    "pow(x0,1.7)": lambda x: x**1.7,
}


def assert_same(actual: np.ndarray, expected: Tensor, what: str) -> None:
    given = torch.from_numpy(actual).double().reshape(expected.shape)
    assert torch.allclose(given, expected.float().double(), 1e-4, 1e-4, equal_nan=True), what


def test_element_wise_kernels_keep_nan_and_infinity() -> None:
    names = [*FUNCTIONS, *FINITE]
    keys = [KernelKey.make("elementwise", (5, 1), 1, expr=name, reads="yc") for name in names]
    functions = [build_kernel(Address(key, (CHANNELS, CHANNELS)), target()) for key in keys]
    x = VALUES.repeat(5 * CHANNELS)[: 5 * CHANNELS].reshape(1, 5, 1, CHANNELS)
    for name, function, kernel in zip(names, functions, compiled(functions), strict=True):
        seen = x if name in FUNCTIONS else x.clamp(-80, 80)
        expected = {**FUNCTIONS, **FINITE}[name](seen.double())
        assert_same(called(kernel, function, [seen.reshape(function.arguments[0].shape)]), expected, name)


class NumberForNan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x != x, 0.5, x)


class NanForNumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x == x, 0.5, x)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (nn.Threshold(0.1, 0.2), "where(le(x,0.1),0.2,x)"),
        (nn.Hardshrink(0.7), "where(le(abs(x),0.7),0,x)"),
        (NumberForNan(), "where(isnan(x),0.5,x)"),
        (NanForNumber(), "where(logical_not(isnan(x)),0.5,x)"),
    ],
)
def test_what_a_comparison_replaces_is_not_nan(function: nn.Module, text: str) -> None:
    network = partition(ChannelGraph.trace(nn.Sequential(nn.Linear(3, 4), function).eval(), (torch.randn(2, 3),)))
    assert [kernel.key.epilogue for kernel in network.kernels] == [("bias", text)]


def test_a_clamp_to_stored_bounds_keeps_nan() -> None:
    key = KernelKey.make("elementwise", (5, 1), 1, expr="clamp(x0,c0,c1)", reads="yc", constants=("1", "1"))
    function = build_kernel(Address(key, (CHANNELS, CHANNELS)), target())
    x = VALUES.repeat(5 * CHANNELS)[: 5 * CHANNELS].reshape(function.arguments[0].shape)
    (kernel,) = compiled([function])
    bounds = [torch.full(each.shape, bound) for each, bound in zip(function.arguments[1:], (-0.3, 2.0), strict=True)]
    assert_same(called(kernel, function, [x, *bounds]), x.clamp(-0.3, 2), "clamp")


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_epilogues_of_convolutions_keep_nan_and_infinity(size: int, depthwise: bool) -> None:
    square, around = (size, size), (size // 2, size // 2)
    cases = [
        Convolution(CHANNELS, CHANNELS, (4, 5), square, padding=around, epilogue=("bias", name), depthwise=depthwise)
        for name in ACTIVATIONS
    ]
    functions = [build_kernel(case.address(), target()) for case in cases]
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(1, CHANNELS, 4, 5, generator=generator)
    weight = torch.randn(CHANNELS, cases[0].read, *square, generator=generator)
    for name, case, function, kernel in zip(ACTIVATIONS, cases, functions, compiled(functions), strict=True):
        bias = VALUES.repeat(3)[:CHANNELS]
        bias = bias.clamp(-80, 80) if name == "silu" else bias
        values = case.of(image.double(), weight.double()) + bias.double()[:, None, None]
        given = {"activation": image.permute(0, 2, 3, 1), "weight": weight, "bias": bias}
        actual = call(function, kernel, **{role: each.numpy() for role, each in given.items()})
        assert_same(actual.transpose(0, 3, 1, 2).copy(), getattr(F, name)(values), name)


@pytest.mark.parametrize("shape", [(3, 21, 1), (1, 21, 19), (1, 3, 19)])
def test_a_softmax_of_nan_or_infinity_is_nan(shape: tuple[int, int, int]) -> None:
    text = ",".join(map(str, shape))
    keys = [KernelKey.make("axis_softmax", (), 1, shape=text, log=log) for log in ("", "1")]
    functions = [build_kernel(Address(key, (1, 1)), target()) for key in keys]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    x[0, 1, 0], x[-1, 2, -1] = NAN, INF
    share, log = (called(kernel, each, [x]) for each, kernel in zip(functions, compiled(functions), strict=True))
    assert_same(share, x.double().softmax(1), "softmax")
    assert_same(log, x.double().log_softmax(1), "log_softmax")


@pytest.mark.parametrize(
    "key", ["max_pool2d 8x8 kernel=3x3 padding=1x1 stride=2x2", "reduce - of=amax shape=2,90,1", "relu 8x8"]
)
def test_arm_has_an_instruction_that_keeps_nan_of_either_value(key: str) -> None:
    address = Address(KernelKey.parse(f"{key} float32 batch=1"), (16, 16))
    text = assembly(build_kernel(address, TARGETS["neon"]).code, TARGETS["neon"])
    assert "\tfmax\t" in text
    assert "fmaxnm" not in text
    assert "fcmgt" not in text
