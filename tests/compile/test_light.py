"""Proves that the light kernels (pooling, element-wise steps, changes of shape) equal PyTorch's operators.

Each at a batch of two, at widths that fill vectors and at odd ones, with one thread and with two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm

from aap_hw.compile import cpu, gpu
from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.cpu import loops
from aap_hw.compile.families import FAMILIES
from aap_hw.compile.families.slow import LIBRARIES
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.library.build import build_kernel
from aap_hw.errors import UserError
from tests.compile.running import call, runnable, target

BATCH, HEIGHT, WIDTH = 2, 6, 9
# Those with a file of tests of their own.
ELSEWHERE = {"attention", "axis_softmax", "matmul", "reduce", "gather", "grid_sample", "resize", "strided_copy"}
ELSEWHERE |= {"argsort", "cumsum", "take_along"}
# Of bytes only.
BYTES = {"quantize", "dequantize"}
LIGHT_KERNELS = {op for op, family in FAMILIES.items() if family.weight is None} - {*LIBRARIES} - ELSEWHERE - BYTES


@dataclass(frozen=True)
class Case:
    """A light kernel, the attributes of its key, and what it does to images (N, C, H, W)."""

    name: str
    operator: Callable[..., torch.Tensor]
    attributes: dict[str, Any] = field(default_factory=dict)
    inputs: int = 1

    def __str__(self) -> str:
        return "-".join([self.name, *(str(value) for value in self.attributes.values())])


def windows(kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], **more: str) -> dict[str, Any]:
    return {"kernel": kernel, "stride": stride, "padding": padding, **more}


def borders(before: tuple[int, int], behind: tuple[int, int] | str = "", **more: object) -> dict[str, Any]:
    return {"padding": before, "padding_end": behind, **more}


CASES = [
    Case("max_pool2d", lambda x: F.max_pool2d(x, 2), windows((2, 2), (2, 2), (0, 0))),
    Case("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 1), windows((3, 3), (2, 2), (1, 1))),
    Case("max_pool2d", lambda x: F.max_pool2d(x, (2, 3), (1, 2), (1, 0)), windows((2, 3), (1, 2), (1, 0))),
    Case("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), windows((3, 3), (2, 2), (0, 0), ceil="1")),
    Case("max_pool2d", lambda x: F.max_pool2d(x, 2, 2, 1, 1, True), windows((2, 2), (2, 2), (1, 1), ceil="1")),
    Case("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 1, 2), windows((3, 3), (2, 2), (1, 1)) | {"dilation": (2, 2)}),
    Case("avg_pool2d", lambda x: F.avg_pool2d(x, 2), windows((2, 2), (2, 2), (0, 0))),
    Case("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 1, 1), windows((3, 3), (1, 1), (1, 1))),
    Case("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 2, 1, True), windows((3, 3), (2, 2), (1, 1), ceil="1")),
    Case(
        "avg_pool2d",
        lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
        windows((3, 3), (2, 2), (1, 1), ceil="1", padding_counts="no"),
    ),
    Case(
        "sum_pool2d",
        lambda x: F.avg_pool2d(x, 3, 2, 1, True, divisor_override=5),
        windows((3, 3), (2, 2), (1, 1), ceil="1", divisor=5),
    ),
    Case("sum_pool2d", lambda x: F.avg_pool2d(x, 2, divisor_override=3), windows((2, 2), (2, 2), (0, 0), divisor=3)),
    Case("global_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 1)),
    Case("relu", F.relu),
    Case("relu6", F.relu6),
    Case("silu", F.silu),
    Case("sigmoid", torch.sigmoid),
    Case("hardsigmoid", F.hardsigmoid),
    Case("hardswish", F.hardswish),
    Case("add", torch.add, inputs=2),
    Case("add", lambda x, y: F.relu(x + y), {"epilogue": ("relu",)}, inputs=2),
    Case("mul", torch.mul, inputs=2),
    Case("elementwise", lambda x: F.gelu(x), {"expr": "gelu(x0)", "reads": ("nyxc",)}),
    Case("elementwise", lambda x, y: torch.tanh(x - y), {"expr": "tanh(sub(x0,x1))", "reads": ("nyxc", "nyxc")}, 2),
    Case("subsample", lambda x: x[:, :, ::2, ::2], {"stride": (2, 2)}),
    Case("subsample", lambda x: x[:, :, :, ::3], {"stride": (1, 3)}),
    Case("pad_channels", lambda x: F.pad(x, (0, 0, 0, 0, 3, 5)), {"before": 3, "after": 5}),
    Case("pad_channels", lambda x: F.pad(x, (0, 0, 0, 0, 0, 8)), {"before": 0, "after": 8}),
    Case("pad", lambda x: F.pad(x, (2, 0, 1, 3), value=-0.5), borders((1, 2), (3, 0), value=-0.5)),
    Case("pad", lambda x: F.pad(x, (2, 2, 0, 0)), borders((0, 2))),
    Case("pad", lambda x: F.pad(x, (3, 8, 5, 1), "reflect"), borders((5, 3), (1, 8), mode="reflect")),
    Case("pad", lambda x: F.pad(x, (3, 3, 9, 9), "replicate"), borders((9, 3), mode="replicate")),
    Case("pad", lambda x: F.pad(x, (9, 1, 0, 6), "circular"), borders((0, 9), (6, 1), mode="circular")),
    Case("channel_slice", lambda x: x[:, : -(-x.shape[1] // 3)], {"side": "first"}),
    Case("channel_slice", lambda x: x[:, x.shape[1] // 3 :], {"side": "last"}),
    Case("interleave", lambda x, y: torch.stack([x, y], 2).flatten(1, 2), {"parts": 2}, inputs=2),
    Case("interleave", lambda *x: torch.stack(x, 2).flatten(1, 2), {"parts": 3}, inputs=3),
    Case("flatten", lambda x: x.flatten(1)[:, :, None, None]),
    Case("to_nhwc", lambda x: x),
    Case("to_nchw", lambda x: x),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("channels", "threads"), [(1, 1), (3, 2), (7, 1), (13, 2), (17, 1), (30, 2), (57, 1)])
def test_light_kernel_equals_pytorch(case: Case, channels: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "WORTH_SHARING", 1)
    # Shifted so that padding with zeros instead of nothing would be seen.
    images = [image - 3 * (case.name == "max_pool2d") for image in random_images(case.inputs, channels)]
    expected = case.operator(*[image.double() for image in images])
    total = expected.shape[1] if case.name == "interleave" else channels
    key = KernelKey.make(case.name, (HEIGHT, WIDTH), BATCH, **case.attributes)
    function = build_kernel(Address(key, (total, expected.shape[1])), target(threads))
    actual = run(function, [image if case.name == "to_nhwc" else nhwc(image) for image in images])
    assert_close(actual if case.name == "to_nchw" else actual.transpose(0, 3, 1, 2), expected)


def random_images(count: int, channels: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [4 * torch.randn(BATCH, channels, HEIGHT, WIDTH, generator=generator) for _ in range(count)]


def nhwc(image: torch.Tensor) -> torch.Tensor:
    return image.permute(0, 2, 3, 1)


def run(function: KernelFunction, inputs: list[torch.Tensor]) -> np.ndarray:
    """Call a kernel with tensors in its own layout; whatever it fails to write stays visible."""
    output = tvm.runtime.tensor(np.full(function.output_shape, np.nan, "float32"))
    arrays = [tvm.runtime.tensor(np.ascontiguousarray(tensor.numpy())) for tensor in inputs]
    runnable(function)(*arrays, output)
    result: np.ndarray = output.numpy()
    return result


def assert_close(actual: np.ndarray, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected.numpy()).max() <= 1e-5


@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (30, 3), (114, 2), (232, 4)])
def test_shuffle_deals_out_the_channels_of_each_group_as_pytorch_does(channels: int, groups: int) -> None:
    (image,) = random_images(1, channels)
    key = KernelKey.make("channel_shuffle", (HEIGHT, WIDTH), BATCH, groups=groups)
    actual = run(build_kernel(Address(key, (channels, channels)), target()), [nhwc(image)])
    expected = torch.nn.ChannelShuffle(groups)(image)
    assert np.array_equal(actual.transpose(0, 3, 1, 2), expected.numpy())


@pytest.mark.parametrize("channels", [1, 7, 30, 57, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_factor_of_each_channel_is_that_of_its_own_image(
    channels: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "WORTH_SHARING", 1)
    (image,), gate = random_images(1, channels), torch.rand(BATCH, channels, 1, 1)
    key = KernelKey.make("scale_channels", (HEIGHT, WIDTH), BATCH)
    function = build_kernel(Address(key, (channels, channels)), target(threads))
    assert_close(run(function, [nhwc(image), nhwc(gate)]).transpose(0, 3, 1, 2), image.double() * gate)


@pytest.mark.parametrize("channels", [1, 7, 30, 57, 64])
@pytest.mark.parametrize("steps", [(), ("relu",), ("silu",)])
def test_affine_kernel_scales_and_shifts_each_channel_before_the_activation(
    channels: int, steps: tuple[str, ...]
) -> None:
    (image,), scale, shift = random_images(1, channels), torch.rand(channels), torch.randn(channels)
    key = KernelKey.make("affine", (HEIGHT, WIDTH), BATCH, epilogue=steps)
    function = build_kernel(Address(key, (channels, channels)), target())
    actual = call(function, activation=nhwc(image).numpy(), weight=scale.numpy(), bias=shift.numpy())
    expected = image.double() * scale[:, None, None] + shift[:, None, None]
    for step in steps:
        expected = getattr(F, step)(expected)
    assert_close(actual.transpose(0, 3, 1, 2), expected)


@pytest.mark.parametrize("widths", [(5,), (1, 3), (16, 16), (7, 64, 13), (57, 2, 17, 30)])
@pytest.mark.parametrize(("threads", "normalised"), [(1, False), (2, False), (1, True)])
def test_concatenation_of_any_widths_is_one_kernel_that_depends_on_their_sum_alone(
    widths: tuple[int, ...], threads: int, normalised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "WORTH_SHARING", 1)
    images, total = [random_images(1, width)[0] for width in widths], sum(widths)
    epilogue = ("affine", "relu") if normalised else ()
    key = KernelKey.make("concat", (HEIGHT, WIDTH), BATCH, parts=len(widths), epilogue=epilogue)
    function = build_kernel(Address(key, (total, total)), target(threads))
    scale, shift = torch.rand(total), torch.randn(total)
    actual = run(function, [*map(nhwc, images), *([scale, shift] if normalised else [])])
    expected = torch.cat(images, 1).double()
    if normalised:
        expected = F.relu(expected * scale[:, None, None] + shift[:, None, None])
    assert_close(actual.transpose(0, 3, 1, 2), expected)


@pytest.mark.parametrize("channels", [1, 3, 17, 57, 1000])
def test_softmax_equals_pytorch_also_for_large_values(channels: int) -> None:
    image = 60 * torch.randn(BATCH, channels, generator=torch.Generator().manual_seed(2))
    function = build_kernel(Address(KernelKey.make("softmax", (), BATCH), (channels, channels)), target())
    actual = run(function, [image.reshape(BATCH, 1, 1, channels)])
    assert_close(actual.reshape(BATCH, channels), image.double().softmax(1))


@pytest.mark.parametrize(
    ("name", "operator"), [("sigmoid", torch.sigmoid), ("silu", F.silu), ("hardswish", F.hardswish)]
)
def test_activation_is_exact_to_a_millionth_over_the_whole_range(
    name: str, operator: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    x = torch.cat([torch.linspace(-80, 80, 4001), torch.tensor([-1e30, -200.0, 200.0, 1e30])])
    function = build_kernel(Address(KernelKey.make(name, (), 1), (len(x), len(x))), target())
    actual = run(function, [x.reshape(1, 1, 1, -1)]).ravel()
    expected = operator(x.double()).numpy()
    assert (np.abs(actual - expected) <= 1e-6 * np.abs(expected) + 1e-8).all()


def test_every_light_kernel_is_tried_here() -> None:
    by_themselves = set(re.findall(r'KernelKey.make\("(\w+)"', Path(__file__).read_text()))
    assert {case.name for case in CASES} | by_themselves >= LIGHT_KERNELS
    assert set(cpu.KERNELS) == set(gpu.KERNELS) == FAMILIES.keys() - {*LIBRARIES} - BYTES


@pytest.mark.parametrize("name", ["relu", "add"])
def test_element_wise_kernel_of_vectors_equals_pytorch(name: str) -> None:
    random = np.random.default_rng(0)
    one, two = (random.standard_normal((2, 1, 1, 10)).astype("float32") for _ in range(2))
    actual = call(build_kernel(Address(KernelKey.make(name, (), 2), (10, 10)), target()), activation=one, residual=two)
    assert np.array_equal(actual, one + two if name == "add" else np.maximum(one, 0))


def test_key_of_another_version_is_refused() -> None:
    with pytest.raises(UserError, match="gelu 6x9 float32 batch=2 is not known to this version"):
        build_kernel(Address(KernelKey.make("gelu", (HEIGHT, WIDTH), BATCH), (8, 8)), target())
