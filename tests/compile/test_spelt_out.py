"""Operators that are spelt out compute what PyTorch's own do, whatever their arguments.

Nothing is compiled here: each spelling is called beside the operator. That TVM compiles them is in `test_slow`.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from aap_hw.compile.families.spelt import SPELT_OUT

RANDOM = torch.Generator().manual_seed(0)
IMAGE, VOLUME = torch.randn(2, 6, 13, 17, generator=RANDOM), torch.randn(2, 4, 3, 4, 5, generator=RANDOM)
VECTOR = torch.randn(6, generator=RANDOM)
GRID = torch.rand(2, 5, 6, 2, generator=RANDOM) * 3 - 1.5
HALVES, FLAGS = (True, False), (0, 1, 2)
assert torchvision.__version__  # brings its operators with it


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=RANDOM)


def resizing() -> Any:
    sizes, factors = [(5, 3), (29, 31), (13, 40), (1, 1), (2, 17)], [[1.7, 2.2], [0.4, 3.0]]
    for kind, corners in itertools.product(("bilinear2d", "bicubic2d"), HALVES):
        for size in sizes:
            yield f"upsample_{kind}.vec", (IMAGE, list(size), corners, None)
            yield f"_upsample_{kind}_aa.vec", (IMAGE, list(size), corners, None)
        for both in factors:
            yield f"upsample_{kind}.vec", (IMAGE, None, corners, both)
            yield f"_upsample_{kind}_aa.vec", (IMAGE, None, corners, both)
        yield f"upsample_{kind}.default", (IMAGE, [19, 9], corners, None, None)
        yield f"upsample_{kind}.default", (IMAGE, [26, 9], corners, 2.0, None)
    for kind in ("upsample_nearest", "_upsample_nearest_exact"):
        for size in sizes:
            yield f"{kind}2d.vec", (IMAGE, list(size), None)
        yield f"{kind}2d.vec", (IMAGE, None, [0.7, 2.4])
        yield f"{kind}2d.vec", (IMAGE[:, :, :4, :4], None, [1.2, 2.2])
        yield f"{kind}2d.default", (IMAGE, [19, 9], None, None)
        yield f"{kind}3d.vec", (VOLUME, [7, 3, 9], None)
        yield f"{kind}1d.vec", (IMAGE[:, 0], [40], None)
    yield "upsample_linear1d.vec", (IMAGE[:, :, 0], [40], False, None)
    yield "upsample_linear1d.vec", (IMAGE[:, :, 0], None, True, [0.3])
    yield "upsample_trilinear3d.vec", (VOLUME, [7, 2, 9], True, None)


def sampling() -> Any:
    for mode, padding, corners in itertools.product(FLAGS, FLAGS, HALVES):
        yield "grid_sampler.default", (IMAGE, GRID, mode, padding, corners)
    for use_mask in HALVES:
        mask = random(2, 12, 7, 9) if use_mask else torch.zeros(2, 1)
        filters, offset, how = random(9, 2, 2, 3), 3 * random(2, 24, 7, 9), (2, 2, 1, 1, 2, 1, 3, 2, use_mask)
        yield "torchvision.deform_conv2d.default", (IMAGE, filters, offset, mask, random(9), *how)


def windows() -> Any:
    for kernel, dilation, padding, stride in (
        ([3, 3], [1, 1], [1, 1], [1, 1]),
        ([2, 3], [1, 2], [0, 2], [2, 1]),
        ([3, 5], [2, 1], [1, 0], [3, 3]),
    ):
        how = kernel, dilation, padding, stride
        yield "im2col.default", (IMAGE, *how)
        yield "col2im.default", (torch.ops.aten.im2col(IMAGE, *how), [13, 17], *how)
    for arguments in (
        ([2, 2],),
        ([3, 3], [2, 2], [1, 1]),
        ([2, 3], [1, 2], [0, 1], [2, 1]),
        ([3, 2], [2, 2], [1], [1], True),
    ):
        yield "max_pool2d_with_indices.default", (IMAGE.relu(), *arguments)  # of equal values the first
    for stride, padding, output_padding, groups, dilation in (
        ([2, 2, 2], [1, 1, 1], [1, 1, 1], 2, [1, 1, 1]),
        ([1, 2, 3], [0, 1, 2], [0, 0, 1], 1, [2, 1, 1]),
        ([2, 1, 2], [1, 2, 1], [0, 0, 0], 4, [1, 1, 2]),
    ):
        how = stride, padding, output_padding, groups, dilation
        yield "conv_transpose3d.input", (VOLUME, random(4, 3, 2, 3, 3), random(3 * groups), *how)
    yield "unfold.default", (IMAGE, -2, 3, 2)
    for size in ([4], [4, 3], [2, 3, 4]):
        yield f"adaptive_max_pool{len(size)}d.default", ((IMAGE[:, :, 0], IMAGE, VOLUME)[len(size) - 1], size)


def ordering() -> Any:
    for name in ("cumsum", "cumprod", "cummax", "cummin"):
        yield f"{name}.default", (IMAGE, -1)
        yield f"{name}.default", (IMAGE, 2)
    repeated = IMAGE.round()  # of equal values the first comes first
    for descending in HALVES:
        yield "sort.default", (IMAGE, -1, descending)
        yield "sort.stable", (repeated,), {"stable": True, "dim": 3, "descending": descending}
        yield "argsort.default", (IMAGE, 1, descending)
        yield "topk.default", (IMAGE, 4, 2, descending)
    for name in ("max", "min"):
        yield f"{name}.dim", (IMAGE, 2, True)
        yield f"{name}.other", (IMAGE, 2 * IMAGE)
        yield f"{name}.default", (IMAGE,)


def norms() -> Any:
    for name in ("var", "std"):
        for overload, arguments in (("dim", ([1, 3], True, True)), ("dim", ([2], False)), ("default", (False,))):
            yield f"{name}.{overload}", (IMAGE, *arguments)
            yield f"{name}_mean.{overload}", (IMAGE, *arguments)
        yield f"{name}.correction", (IMAGE, [2]), {"correction": 0, "keepdim": True}
        yield f"{name}_mean.correction", (IMAGE, None), {"correction": 2}
    for name, over in (("sum", "dim_IntList"), ("mean", "dim")):
        yield f"{name}.default", (IMAGE,)
        yield f"{name}.{over}", (IMAGE, [-1, 1], True)
        yield f"{name}.{over}", (random(2, 3, 700, 2), [2, 1])
    yield "sum.dim_IntList", (IMAGE > 0, [1])
    yield "group_norm.default", (IMAGE, 3, VECTOR, VECTOR, 1e-5, True)
    yield "group_norm.default", (IMAGE, 1, None, None, 1e-3)
    yield "layer_norm.default", (IMAGE, [13, 17], random(13, 17), None, 1e-5)
    yield "instance_norm.default", (IMAGE, VECTOR, VECTOR, None, None, True, 0.1, 1e-5, True)
    yield "instance_norm.default", (IMAGE, None, None, VECTOR, VECTOR.abs(), False, 0.1, 1e-5, True)


def others() -> Any:
    some, column = torch.tensor([0, -1, 2]), torch.tensor([[3], [4]])
    for indices in (
        [None, None, some, column],
        [None, some, None, column],
        [None, some],
        [some % 2, some],
        [None, some, some],
    ):
        yield "index.Tensor", (IMAGE, indices)
    yield "select.int", (IMAGE, 2, -1)
    yield "select.int", (IMAGE, -2, -3)
    for kind, how in itertools.product((torch.float32, torch.int64, torch.uint8), ((2, None), (None, 3), (1, 4))):
        yield "clamp.default", (torch.arange(8).to(kind), *how)
    for name in ("selu", "rrelu", "erfc"):
        yield f"{name}.default", (IMAGE,)
    for power in (1.0, 2.0, 3.0):
        yield "cdist.default", (IMAGE[:, 0], IMAGE[:, 1], power)


WITHOUT_PLACES = {"cummax", "cummin", *(f"adaptive_max_pool{rank}d" for rank in (1, 2, 3))}
"""Their results are the values alone, as no kernel reads where these were."""
CASES = [case for cases in (resizing, sampling, windows, ordering, norms, others) for case in cases()]


def results(function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> list[Tensor]:
    returned = function(*arguments, **named)
    return list(returned) if isinstance(returned, tuple) else [returned]


def test_every_spelling_is_tried() -> None:
    assert {name.split(".")[-2] for name, *_ in CASES} == SPELT_OUT.keys()


@pytest.mark.parametrize("name", SPELT_OUT)
def test_a_spelling_computes_what_the_operator_does(name: str) -> None:
    for called, arguments, *rest in CASES:
        *library, operator, overload = called.split(".")
        if operator == name:
            named = rest[0] if rest else {}
            packet = getattr(getattr(torch.ops, library[0] if library else "aten"), operator)
            expected = results(getattr(packet, overload), arguments, named)
            actual = results(SPELT_OUT[name], arguments, named)
            assert len(actual) == len(expected) or (name in WITHOUT_PLACES and len(actual) == 1)
            for here, there in zip(actual, expected, strict=False):
                torch.testing.assert_close(here, there, rtol=1e-5, atol=2e-5, check_dtype=False)


@pytest.mark.parametrize("name", ["upsample_nearest1d", "_upsample_nearest_exact1d"])
def test_nearest_pixels_are_pytorchs_at_every_size_and_factor(name: str) -> None:
    for size in (1, 2, 3, 7, 32, 41, 59, 64):
        row = torch.arange(float(size))[None, None]
        factors = [factor for factor in (0.3, 0.7, 1.1, 1.7, 2.3, 5.9) if int(size * factor)]
        for how in [([made], None) for made in range(1, 130)] + [(None, [factor]) for factor in factors]:
            assert torch.equal(SPELT_OUT[name](row, *how), getattr(torch.ops.aten, name).vec(row, *how)), (size, how)


def test_a_norm_of_many_values_keeps_its_digits_far_from_zero() -> None:
    image = 1000 + torch.randn(1, 2, 256, 256, generator=RANDOM)
    exact = torch.nn.functional.group_norm(image.double(), 1)
    # What is left is what float32 makes of the image itself.
    assert (SPELT_OUT["group_norm"](image, 1).double() - exact).abs().max() < 3e-4


def test_rows_too_long_to_sort_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="rows of 1025"):
        SPELT_OUT["sort"](torch.zeros(1, 1025))
