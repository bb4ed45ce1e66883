"""Proves that the light kernels (pooling, element-wise steps, changes of shape) equal PyTorch's operators.

Each at a batch of two, at widths that fill vectors and at odd ones, with one thread and with two.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from aap_hw.compile import cpu, gpu
from aap_hw.compile.cpu import loops
from aap_hw.compile.families import FAMILIES
from aap_hw.compile.families.slow import LIBRARIES
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.library.build import build_kernel
from aap_hw.errors import UserError
from tests.compile.light import BATCH, BYTES, CASES, HEIGHT, LIGHT_KERNELS, WIDTH, nhwc, random_images
from tests.compile.running import call, called, compiled, target

SLOW = [(1, 1), (7, 1), (13, 2), (30, 2), (57, 1)]  # less than a vector, and several


@pytest.mark.parametrize(
    ("channels", "threads"), [(3, 2), (17, 1), *(pytest.param(*way, marks=pytest.mark.slow) for way in SLOW)]
)
def test_light_kernels_equal_pytorch(channels: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "WORTH_SHARING", 1)
    functions, inputs, outputs = [], [], []
    for case in CASES:
        # Shifted so that padding with zeros instead of nothing would be seen.
        images = [image - 3 * (case.name == "max_pool2d") for image in random_images(case.inputs, channels)]
        expected = case.operator(*[image.double() for image in images])
        total = expected.shape[1] if case.name == "interleave" else channels
        key = KernelKey.make(case.name, (HEIGHT, WIDTH), BATCH, **case.attributes)
        functions.append(build_kernel(Address(key, (total, expected.shape[1])), target(threads)))
        inputs.append([image if case.name == "to_nhwc" else nhwc(image) for image in images])
        outputs.append(expected)
    for case, function, kernel, given, expected in zip(
        CASES, functions, compiled(functions), inputs, outputs, strict=True
    ):
        actual = called(kernel, function, given)
        assert_close(actual if case.name == "to_nchw" else actual.transpose(0, 3, 1, 2), expected, str(case))


def assert_close(actual: np.ndarray, expected: torch.Tensor, what: object = "") -> None:
    assert actual.shape == expected.shape, what
    assert np.abs(actual - expected.numpy()).max() <= 1e-5, what


def test_shuffle_deals_out_the_channels_of_each_group_as_pytorch_does() -> None:
    cases = [(6, 2), (30, 3), (114, 2), (232, 4)]
    keys = [KernelKey.make("channel_shuffle", (HEIGHT, WIDTH), BATCH, groups=groups) for _, groups in cases]
    functions = [build_kernel(Address(key, (c, c)), target()) for key, (c, _) in zip(keys, cases, strict=True)]
    for (channels, groups), function, kernel in zip(cases, functions, compiled(functions), strict=True):
        (image,) = random_images(1, channels)
        actual = called(kernel, function, [nhwc(image)])
        expected = torch.nn.ChannelShuffle(groups)(image)
        assert np.array_equal(actual.transpose(0, 3, 1, 2), expected.numpy()), (channels, groups)


def test_factor_of_each_channel_is_that_of_its_own_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "WORTH_SHARING", 1)
    cases = [(channels, threads) for channels in (1, 7, 30, 57, 64) for threads in (1, 2)]
    key = KernelKey.make("scale_channels", (HEIGHT, WIDTH), BATCH)
    functions = [build_kernel(Address(key, (channels, channels)), target(threads)) for channels, threads in cases]
    for case, function, kernel in zip(cases, functions, compiled(functions), strict=True):
        (image,), gate = random_images(1, case[0]), torch.rand(BATCH, case[0], 1, 1)
        actual = called(kernel, function, [nhwc(image), nhwc(gate)])
        assert_close(actual.transpose(0, 3, 1, 2), image.double() * gate, case)


def test_affine_kernel_scales_and_shifts_each_channel_before_the_activation() -> None:
    cases: list[tuple[int, tuple[str, ...]]] = [
        (channels, steps) for channels in (1, 7, 30, 57, 64) for steps in ((), ("relu",), ("silu",))
    ]
    keys = {steps: KernelKey.make("affine", (HEIGHT, WIDTH), BATCH, epilogue=steps) for _, steps in cases}
    functions = [build_kernel(Address(keys[steps], (channels, channels)), target()) for channels, steps in cases]
    for (channels, steps), function, kernel in zip(cases, functions, compiled(functions), strict=True):
        (image,), scale, shift = random_images(1, channels), torch.rand(channels), torch.randn(channels)
        actual = call(function, kernel, activation=nhwc(image).numpy(), weight=scale.numpy(), bias=shift.numpy())
        expected = image.double() * scale[:, None, None] + shift[:, None, None]
        for step in steps:
            expected = getattr(F, step)(expected)
        assert_close(actual.transpose(0, 3, 1, 2), expected, (channels, steps))


@pytest.mark.parametrize(
    "some",
    [((1, 3), (7, 64, 13)), pytest.param(((5,), (16, 16), (57, 2, 17, 30)), marks=pytest.mark.slow)],
    ids=["odd", "others"],
)
def test_concatenation_of_any_widths_is_one_kernel_that_depends_on_their_sum_alone(
    some: tuple[tuple[int, ...], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "WORTH_SHARING", 1)
    cases = [
        (widths, threads, normalised) for widths in some for threads, normalised in ((1, False), (2, False), (1, True))
    ]
    functions = []
    for widths, threads, normalised in cases:
        epilogue = ("affine", "relu") if normalised else ()
        key = KernelKey.make("concat", (HEIGHT, WIDTH), BATCH, parts=len(widths), epilogue=epilogue)
        functions.append(build_kernel(Address(key, (sum(widths), sum(widths))), target(threads)))
    for case, function, kernel in zip(cases, functions, compiled(functions), strict=True):
        widths, _, normalised = case
        images, total = [random_images(1, width)[0] for width in widths], sum(widths)
        scale, shift = torch.rand(total), torch.randn(total)
        actual = called(kernel, function, [*map(nhwc, images), *([scale, shift] if normalised else [])])
        expected = torch.cat(images, 1).double()
        if normalised:
            expected = F.relu(expected * scale[:, None, None] + shift[:, None, None])
        assert_close(actual.transpose(0, 3, 1, 2), expected, case)


def test_softmax_equals_pytorch_also_for_large_values() -> None:
    widths, key = (1, 3, 17, 57, 1000), KernelKey.make("softmax", (), BATCH)
    functions = [build_kernel(Address(key, (channels, channels)), target()) for channels in widths]
    for channels, function, kernel in zip(widths, functions, compiled(functions), strict=True):
        image = 60 * torch.randn(BATCH, channels, generator=torch.Generator().manual_seed(2))
        actual = called(kernel, function, [image.reshape(BATCH, 1, 1, channels)])
        assert_close(actual.reshape(BATCH, channels), image.double().softmax(1), channels)


def test_activations_are_exact_to_a_millionth_over_the_whole_range() -> None:
    x = torch.cat([torch.linspace(-80, 80, 4001), torch.tensor([-1e30, -200.0, 200.0, 1e30])])
    operators = {"sigmoid": torch.sigmoid, "silu": F.silu, "hardswish": F.hardswish}
    functions = [build_kernel(Address(KernelKey.make(name, (), 1), (len(x), len(x))), target()) for name in operators]
    for name, function, kernel in zip(operators, functions, compiled(functions), strict=True):
        actual = called(kernel, function, [x.reshape(1, 1, 1, -1)]).ravel()
        expected = operators[name](x.double()).numpy()
        assert (np.abs(actual - expected) <= 1e-6 * np.abs(expected) + 1e-8).all(), name


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
