"""Proves that compiled depthwise convolutions equal PyTorch's in float64 at every kind of size and width."""

from __future__ import annotations

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.compile.running import Convolution, assert_convolutions_equal_pytorch

Pair = tuple[int, int]


def depthwise(
    width: int,
    size: Pair = (5, 6),
    *,
    kernel: Pair = (3, 3),
    stride: Pair = (1, 1),
    padding: Pair = (1, 1),
    dilation: Pair = (1, 1),
    epilogue: tuple[str, ...] = ("bias", "relu6"),
    batch: int = 1,
    planar: bool = False,
) -> Convolution:
    return Convolution(width, width, size, kernel, stride, padding, dilation, epilogue, batch, planar, True)


def test_depthwise_convolution_of_any_width_equals_pytorch() -> None:
    assert_convolutions_equal_pytorch([depthwise(width) for width in (1, 3, 5, 17, 24, 37, 48)])


def test_depthwise_convolution_of_any_geometry_equals_pytorch() -> None:
    cases = [
        depthwise(24, (7, 9), stride=(2, 2), batch=2),
        depthwise(5, (8, 8), stride=(2, 2)),
        depthwise(24, (9, 9), kernel=(5, 5), padding=(2, 2)),
        depthwise(16, (6, 6), kernel=(3, 3), padding=(0, 0)),
        depthwise(16, (9, 8), dilation=(2, 2), padding=(2, 2)),
        depthwise(24, (4, 10), kernel=(1, 3), padding=(0, 1), stride=(2, 1)),
        depthwise(16, (9, 15), kernel=(13, 13), padding=(6, 6)),
        depthwise(32, (1, 1)),
    ]
    assert_convolutions_equal_pytorch(cases)


def test_every_epilogue_is_applied_in_its_order() -> None:
    epilogues = [("bias",), ("bias", "relu"), ("bias", "add"), ("bias", "add", "relu")]
    assert_convolutions_equal_pytorch([depthwise(24, epilogue=epilogue, batch=2) for epilogue in epilogues])


def test_first_layer_reads_the_image_as_pytorch_lays_it_out() -> None:
    assert_convolutions_equal_pytorch([depthwise(3, planar=True, padding=each, batch=2) for each in ((0, 0), (1, 1))])


def test_two_threads_compute_what_pytorch_computes() -> None:
    # The larger one is computed in several bands of rows.
    assert_convolutions_equal_pytorch([depthwise(17, (7, 9)), depthwise(64, (24, 60))], threads=2)


@st.composite
def convolutions(draw: st.DrawFn) -> Convolution:
    def pair(low: int, high: int) -> Pair:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, padding, dilation = pair(1, 3), pair(0, 2), pair(1, 2)
    # The window must fit.
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    height, width = (draw(st.integers(low, 7)) for low in smallest)
    return depthwise(
        draw(st.sampled_from((1, 3, 8, 24, 40))),
        (height, width),
        kernel=kernel,
        stride=pair(1, 2),
        padding=padding,
        dilation=dilation,
        batch=draw(st.integers(1, 2)),
    )


# Those of one thread are in `test_random_kernels`.
@settings(max_examples=2, phases=[Phase.generate])
@given(cases=st.lists(convolutions(), min_size=4, max_size=4, unique=True))
def test_random_depthwise_convolutions_of_two_threads_equal_pytorch(cases: list[Convolution]) -> None:
    assert_convolutions_equal_pytorch(cases, threads=2)
