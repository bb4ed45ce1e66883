"""Proves that compiled convolutions and linear layers equal PyTorch's in float64 at every kind of size and width.

Widths are those that fill vectors and those that do not (1, 3, 5, 17, 24, 37); the epilogues are all that a network
can fuse; the padding, stride and dilation may differ between the two axes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm_ffi
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from aap_hw.compile.cpu.winograd import choose_winograd
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import device_target
from aap_hw.compile.library.build import build_kernel
from tests.compile.running import EPILOGUES, Convolution, assert_convolutions_equal_pytorch, call, compiled, target

WIDTHS = (1, 3, 5, 17, 24, 37)


def test_convolution_of_any_width_equals_pytorch() -> None:
    widths = [(1, 1), (3, 5), (5, 24), (17, 3), (24, 37), (37, 17), (1, 32), (8, 8), (16, 48)]
    assert_convolutions_equal_pytorch([Convolution(*pair, epilogue=("bias", "relu")) for pair in widths])


def test_every_epilogue_is_applied_in_its_order() -> None:
    assert_convolutions_equal_pytorch([Convolution(5, 24, epilogue=epilogue, batch=2) for epilogue in EPILOGUES])


def test_convolution_of_any_geometry_equals_pytorch() -> None:
    cases = [
        Convolution(17, 24, kernel=(1, 1), padding=(0, 0)),
        Convolution(24, 37, kernel=(1, 1), padding=(0, 0), stride=(2, 2), size=(7, 9)),
        Convolution(5, 17, kernel=(5, 5), padding=(2, 2)),
        Convolution(3, 8, kernel=(7, 7), padding=(3, 3), stride=(2, 2), size=(15, 13)),
        Convolution(5, 8, dilation=(2, 2), padding=(2, 2)),
        Convolution(5, 8, padding=(0, 0), size=(7, 5)),
        Convolution(5, 8, kernel=(3, 1), padding=(1, 0), stride=(1, 2), dilation=(2, 1), size=(9, 10)),
        Convolution(5, 8, kernel=(2, 4), padding=(0, 3), stride=(3, 1), size=(8, 6)),
        Convolution(3, 5, size=(1, 1)),
        Convolution(3, 5, size=(5, 13)),
    ]
    assert_convolutions_equal_pytorch(cases)


def test_first_layer_reads_the_image_as_pytorch_lays_it_out() -> None:
    first = Convolution(1, 17, size=(9, 7), stride=(2, 2), planar=True, batch=2)
    others = replace(first, width_in=3, padding=(0, 0)), replace(first, width_in=5)
    assert_convolutions_equal_pytorch([first, *others])


def test_two_threads_compute_what_pytorch_computes() -> None:
    cases = [
        Convolution(5, 17, epilogue=("bias", "add", "relu"), batch=2),
        Convolution(3, 24, planar=True, stride=(2, 2), size=(9, 9)),
        Convolution(37, 40, kernel=(1, 1), padding=(0, 0)),
        # Weights larger than the image: the loops are the other way round.
        Convolution(64, 96, size=(2, 2), epilogue=("bias", "relu")),
    ]
    assert_convolutions_equal_pytorch(cases, threads=2)


@st.composite
def convolutions(draw: st.DrawFn) -> Convolution:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, padding, dilation = pair(1, 4), pair(0, 2), pair(1, 2)
    # The window must fit.
    smallest = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    height, width = (draw(st.integers(low, 9)) for low in smallest)
    return Convolution(
        draw(st.sampled_from(WIDTHS)),
        draw(st.sampled_from(WIDTHS)),
        size=(height, width),
        kernel=kernel,
        stride=pair(1, 3),
        padding=padding,
        dilation=dilation,
        epilogue=draw(st.sampled_from(EPILOGUES)),
        batch=draw(st.integers(1, 2)),
        planar=draw(st.booleans()),
    )


# Those of one thread are in `test_random_kernels`.
@settings(max_examples=2, phases=[Phase.generate])
@given(cases=st.lists(convolutions(), min_size=8, max_size=8, unique=True))
def test_random_convolutions_of_two_threads_equal_pytorch(cases: list[Convolution]) -> None:
    assert_convolutions_equal_pytorch(cases, threads=2)


def test_linear_layer_equals_pytorch() -> None:
    widths = [(1, 1), (5, 3), (37, 24), (64, 10), (24, 100)]
    cases = [(batch, *pair) for batch in (1, 2) for pair in widths]
    keys = {batch: KernelKey.make("linear", (), batch, epilogue=("bias", "relu")) for batch in (1, 2)}
    functions = [build_kernel(Address(keys[batch], (read, made)), target()) for batch, read, made in cases]
    random = np.random.default_rng(0)
    for (batch, read, made), function, kernel in zip(cases, functions, compiled(functions), strict=True):
        x, w, b = (random.standard_normal(s).astype("float32") for s in ((batch, read), (made, read), made))
        actual = call(function, kernel, activation=x.reshape(batch, 1, 1, read), weight=w, bias=b)
        expected = np.maximum(x.astype(float) @ w.astype(float).T + b, 0)
        assert np.abs(actual.reshape(batch, made) - expected).max() < 1e-5 * np.sqrt(read), (batch, read, made)


def test_every_weight_is_packed_and_nothing_else() -> None:
    case = Convolution(3, 37)
    function = build_kernel(Address(case.key(), (3, 37)), target())
    assert function.pack is not None
    dense = np.arange(1, 37 * 3 * 9 + 1, dtype="float32").reshape(37, 3, 3, 3)
    packed = function.pack(dense)
    assert packed.shape == next(a.shape for a in function.arguments if a.role == "weight")
    assert set(packed.ravel()) == set(dense.ravel())


def test_what_is_built_depends_on_the_arguments_alone() -> None:
    case = Convolution(24, 37, epilogue=("bias", "add", "relu"))
    one, two = (build_kernel(Address(case.key(), (24, 37)), target()).code for _ in range(2))
    assert tvm_ffi.structural_equal(one, two, map_free_vars=True)
    other = build_kernel(Address(replace(case, epilogue=("bias", "relu")).key(), (24, 37)), target()).code
    assert not tvm_ffi.structural_equal(one, other, map_free_vars=True)


@pytest.mark.parametrize(
    ("pixels", "channels", "alone", "shared"), [(7, 512, 4, 2), (4, 256, 2, None), (28, 128, 4, 4)]
)
def test_threads_that_would_each_read_more_weights_take_smaller_tiles(
    pixels: int, channels: int, alone: int, shared: int | None
) -> None:
    key = KernelKey.make("conv2d", (pixels, pixels), 1, kernel=(3, 3), padding=(1, 1), stride=(1, 1), dilation=(1, 1))
    address = Address(key, (channels, channels))
    chosen = [choose_winograd(address, device_target({"kind": "llvm", "mcpu": "znver4"}, n)) for n in (1, 2)]
    assert chosen == [alone, shared]


def test_weights_that_arrive_slowly_make_for_smaller_tiles() -> None:
    key = KernelKey.make("conv2d", (7, 7), 1, kernel=(3, 3), padding=(1, 1), stride=(1, 1), dilation=(1, 1))
    cpus = ("znver4", "emeraldrapids")
    targets = [device_target({"kind": "llvm", "mcpu": cpu}, 1) for cpu in cpus]
    assert [choose_winograd(Address(key, (512, 512)), target) for target in targets] == [4, 2]
