"""Proves that random kernels equal PyTorch in float64, whatever their sizes and epilogue, and touch no other memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.compile.random_kernels import linear, random_tensors, reference, wrong_kernels
from tests.compile.running import EPILOGUES, Convolution, assert_compiled_equals_pytorch

KERNELS_OF_A_LIBRARY = 25
LIBRARIES = 8
# Less than a vector, and more than one; the others are slow.
ODD_WIDTHS = [3, 17, *(pytest.param(width, marks=pytest.mark.slow) for width in (1, 7, 13, 30, 57))]


@st.composite
def kernels(draw: st.DrawFn) -> Convolution:
    widths = st.integers(1, 70)
    epilogue, batch = draw(st.sampled_from([*EPILOGUES, ("bias", "relu", "add")])), draw(st.integers(1, 3))
    op = draw(st.sampled_from(["conv2d", "conv2d", "depthwise_conv2d", "depthwise_conv2d", "linear"]))
    if op == "linear":
        return linear(draw(widths), draw(widths), epilogue, batch)

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    square = st.sampled_from([(1, 1), (3, 3), (5, 5), (7, 7)])
    kernel, padding, dilation = draw(square) if draw(st.booleans()) else pair(1, 7), pair(0, 3), pair(1, 2)
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    height, width = (draw(st.integers(low, 20)) for low in smallest)
    width_in = draw(widths)
    depthwise, planar = op == "depthwise_conv2d", draw(st.booleans())
    return Convolution(
        width_in,
        width_in if depthwise else draw(widths),
        (height, width),
        kernel,
        pair(1, 3),
        padding,
        dilation,
        epilogue,
        batch,
        planar=planar,
        depthwise=depthwise,
        pitched=draw(st.sampled_from([(), ("output",), *([] if planar else [("input",), ("input", "output")])])),
    )


# The same kernels in every run. A failure names its kernel, and to shrink a library would mean to compile hundreds.
@pytest.mark.slow
@settings(max_examples=LIBRARIES, derandomize=True, database=None, phases=[Phase.generate])
@given(cases=st.lists(kernels(), min_size=KERNELS_OF_A_LIBRARY, max_size=KERNELS_OF_A_LIBRARY, unique=True))
def test_random_kernels_equal_pytorch(cases: list[Convolution]) -> None:
    assert wrong_kernels(cases) == []


@pytest.mark.parametrize("width", ODD_WIDTHS)
def test_kernels_of_odd_widths_equal_pytorch(width: int) -> None:
    pairs = [(width, width), (width, 32), (32, width)]
    cases = [Convolution(*pair, (9, 7), epilogue=("bias", "add", "relu")) for pair in pairs]
    cases.append(replace(cases[0], kernel=(1, 1), padding=(0, 0)))
    cases += [Convolution(width, width, (9, 7), stride=(s, s), depthwise=True) for s in (1, 2)]
    cases += [replace(case, pitched=("input", "output")) for case in cases]
    cases += [linear(*pair, ("bias", "relu")) for pair in pairs]
    assert wrong_kernels(cases) == []


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_grouped_convolutions_equal_pytorch(groups: int, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(6, 12, 1), nn.ReLU(), nn.Conv2d(12, 18, 3, padding=1, groups=groups)).eval()
    assert_compiled_equals_pytorch(model, torch.randn(2, 6, 9, 7), tmp_path)


@pytest.mark.parametrize(
    "case",
    [Convolution(70, 70, (20, 20), (7, 7), padding=(3, 3), batch=2), Convolution(1, 4), linear(70, 70)],
    ids=repr,
)
def test_the_tolerance_is_too_small_for_a_single_product_left_out(case: Convolution) -> None:
    tensors = random_tensors(case)
    expected, tolerance = reference(case, tensors)
    weight = tensors["weight"].copy()
    weight[0, -1, -1, -1] = 0
    without, _ = reference(case, {**tensors, "weight": weight})
    assert (abs(without - expected) > tolerance).any()
