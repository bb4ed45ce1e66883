"""Windows of an image: unfolded, folded, pooled; and 3-D transposed convolution."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = Sequence[int]


def _adaptive_max_pool(image: Tensor, size: Sequence[int]) -> tuple[Tensor]:
    """Adaptive pooling, window by window, without the places of the maxima."""
    rank = len(size)
    windows = [
        [slice(i * extent // count, -(-(i + 1) * extent // count)) for i in range(count)]
        for extent, count in zip(image.shape[-rank:], size, strict=True)
    ]
    axes = tuple(range(-rank, 0))
    picked: list[tuple[Any, ...]] = [(Ellipsis, *window) for window in itertools.product(*windows)]
    maxima = [image[window].amax(axes) for window in picked]
    return (torch.stack(maxima, -1).reshape(*image.shape[:-rank], *size),)


def _unfold(values: Tensor, axis: int, size: int, step: int) -> Tensor:
    """All windows along an axis; the elements of a window are a new last axis."""
    beyond = values.shape[axis] - size + 1
    return torch.stack([torch.ops.aten.slice(values, axis, at, beyond + at, step) for at in range(size)], -1)


def _im2col(image: Tensor, kernel: Pair, dilation: Pair, padding: Pair, stride: Pair) -> Tensor:
    """All windows of an image as columns: (N, C kernel, windows)."""
    image = F.pad(image, (padding[1], padding[1], padding[0], padding[0]))

    def places(axis: int, offset: int) -> slice:
        reach = dilation[axis] * (kernel[axis] - 1)
        begin = offset * dilation[axis]
        return slice(begin, image.shape[axis + 2] - reach + begin, stride[axis])

    offsets = itertools.product(range(kernel[0]), range(kernel[1]))
    pieces = [image[:, :, places(0, row), places(1, column)] for row, column in offsets]
    return torch.stack(pieces, 2).flatten(3).flatten(1, 2)


def _col2im(columns: Tensor, size: Pair, kernel: Pair, dilation: Pair, padding: Pair, stride: Pair) -> Tensor:
    """Windows added up where they came from: a transposed convolution with one-hot filters."""
    reach = [by * (length - 1) + 1 for by, length in zip(dilation, kernel, strict=True)]
    span = [length + 2 * pad - far for length, pad, far in zip(size, padding, reach, strict=True)]
    counts = [length // step + 1 for length, step in zip(span, stride, strict=True)]
    beyond = [length % step for length, step in zip(span, stride, strict=True)]
    area = kernel[0] * kernel[1]
    channels = columns.shape[1] // area
    filters = torch.eye(area).reshape(area, 1, *kernel)
    images = columns.reshape(columns.shape[0] * channels, area, *counts)
    summed = F.conv_transpose2d(images, filters, None, stride, padding, beyond, 1, dilation)
    return summed.reshape(columns.shape[0], channels, *size)


def _conv_transpose3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    output_padding: Sequence[int] = (0, 0, 0),
    groups: int = 1,
    dilation: Sequence[int] = (1, 1, 1),
) -> Tensor:
    """A convolution with flipped filters of a volume with zeros between its values."""
    pads: list[int] = []
    for axis, step in enumerate(stride, start=2):
        size, reach = x.shape[axis], dilation[axis - 2] * (weight.shape[axis] - 1)
        spread = F.pad(x.movedim(axis, -1).unsqueeze(-1), (0, step - 1)).flatten(-2)
        x = spread.narrow(-1, 0, (size - 1) * step + 1).movedim(-1, axis)
        pads = [reach - padding[axis - 2], reach - padding[axis - 2] + output_padding[axis - 2], *pads]
    turned = weight.flip(2, 3, 4).reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return F.conv3d(F.pad(x, pads), turned, bias, 1, 0, dilation, groups)


def _max_pool_with_places(
    image: Tensor, kernel: Pair, stride: Pair = (), padding: Pair = (0,), dilation: Pair = (1,), ceil_mode: bool = False
) -> tuple[Tensor, Tensor]:
    """The maxima of windows, and where in the image each is: of equal values the first."""
    kernel, stride, padding, dilation = (
        (*each, each[-1])[:2] for each in (kernel, stride or kernel, padding, dilation)
    )
    made = F.max_pool2d(image, kernel, stride, padding, dilation, ceil_mode).shape[2:]
    ends = [
        (count - 1) * step + by * (length - 1) + 1 - size - pad
        for count, step, by, length, size, pad in zip(
            made, stride, dilation, kernel, image.shape[2:], padding, strict=True
        )
    ]
    image = F.pad(image, (padding[1], max(ends[1], 0), padding[0], max(ends[0], 0)), value=float("-inf"))
    width = image.shape[3] - padding[1] - max(ends[1], 0)
    values = places = image
    for row, column in itertools.product(range(kernel[0]), range(kernel[1])):
        first = row * dilation[0], column * dilation[1]
        pixels, at = image, torch.zeros(1)
        for axis, factor in enumerate((width, 1)):
            last = first[axis] + (made[axis] - 1) * stride[axis] + 1
            pixels = torch.ops.aten.slice(pixels, axis + 2, first[axis], last, stride[axis])
            along = torch.arange(made[axis]) * stride[axis] + (first[axis] - padding[axis])
            at = at + (along * factor).float().reshape(-1, *[1] * (1 - axis))
        if (row, column) == (0, 0):
            values, places = pixels, at.expand(pixels.shape)
        else:
            values, places = torch.maximum(values, pixels), torch.where(pixels > values, at, places)
    return values, places.long()


WINDOWS: dict[str, Callable[..., Any]] = {
    **{f"adaptive_max_pool{rank}d": _adaptive_max_pool for rank in (1, 2, 3)},
    "unfold": _unfold,
    "im2col": _im2col,
    "col2im": _col2im,
    "conv_transpose3d": _conv_transpose3d,
    "max_pool2d_with_indices": _max_pool_with_places,
}
