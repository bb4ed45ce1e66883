"""Images read at computed coordinates: grid sampling and deformable convolution.

Coordinates are in pixels. Outside the image values are zero unless the operator says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BILINEAR, NEAREST = 0, 1
ZEROS, BORDER = 0, 1


def _at(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels (N, C, places) of an image at whole rows and columns (N, places)."""
    height, width = image.shape[-2:]
    is_inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    places = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    places = places.long().unsqueeze(1).expand(-1, image.shape[1], -1)
    return image.flatten(2).gather(2, places) * is_inside.float().unsqueeze(1)


def _between(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear interpolation at fractional coordinates."""
    top, left = rows.floor(), columns.floor()
    down, right = rows - top, columns - left
    corners = [
        (top, left, (1 - down) * (1 - right)),
        (top, left + 1, (1 - down) * right),
        (top + 1, left, down * (1 - right)),
        (top + 1, left + 1, down * right),
    ]
    weighted = [_at(image, row, column) * weight.unsqueeze(1) for row, column, weight in corners]
    return weighted[0] + weighted[1] + weighted[2] + weighted[3]


def _cubic_weights(share: Tensor) -> list[Tensor]:
    """Cubic weights of the four pixels around a coordinate (Keys, 1981, with a = -0.75)."""

    def near(x: Tensor) -> Tensor:
        return (1.25 * x - 2.25) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((-0.75 * x + 3.75) * x - 6) * x + 3

    return [far(share + 1), near(share), near(1 - share), far(2 - share)]


def _within(places: Tensor, size: int, padding: int, align_corners: bool) -> Tensor:
    """Coordinates moved into the image as the padding mode says."""
    if padding == ZEROS:
        return places
    if padding != BORDER:  # reflection, at the outer pixels or at their outer edges
        low, span = (0.0, size - 1.0) if align_corners else (-0.5, float(size))
        if span == 0:
            return places * 0
        far = (places - low).abs()
        turns = (far / span).floor()
        rest = far - turns * span
        is_even = turns - 2 * (turns / 2).floor() == 0
        places = torch.where(is_even, rest + low, span - rest + low)
    return places.clamp(0, size - 1)


def _grid_sampler(image: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    """An image (N, C, H, W) at the places of a grid (N, rows, columns, 2) that has -1 and 1 at its edges."""
    if image.dim() != 4:
        raise NotImplementedError("a volume")

    def in_pixels(places: Tensor, size: int) -> Tensor:
        return (places + 1) / 2 * (size - 1) if align_corners else ((places + 1) * size - 1) / 2

    height, width = image.shape[-2:]
    columns, rows = (in_pixels(grid.narrow(-1, axis, 1).flatten(1), size) for axis, size in ((0, width), (1, height)))

    def inside(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        return _within(rows, height, padding, align_corners), _within(columns, width, padding, align_corners)

    if mode == BILINEAR:
        sampled = _between(image, *inside(rows, columns))
    elif mode == NEAREST:
        rows, columns = inside(rows, columns)
        sampled = _at(image, rows.round(), columns.round())
    else:
        top, left = rows.floor(), columns.floor()
        terms = [
            _at(image, *inside(top + down - 1, left + right - 1)) * (by_row * by_column).unsqueeze(1)
            for down, by_row in enumerate(_cubic_weights(rows - top))
            for right, by_column in enumerate(_cubic_weights(columns - left))
        ]
        sampled = torch.stack(terms).sum(0)
    return sampled.reshape(*image.shape[:2], *grid.shape[1:3])


def _deform_conv2d(
    image: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,
) -> Tensor:
    """Deformable convolution (Zhu et al., 2018, equation 1): each tap of the filter is moved by an offset."""
    batch, channels = image.shape[:2]
    kernel_h, kernel_w = weight.shape[-2:]
    area, (rows, columns) = kernel_h * kernel_w, offset.shape[-2:]
    # Offsets (N, groups, taps, 2, rows, columns) from where the taps would be.
    moved = offset.reshape(batch, offset_groups, area, 2, rows, columns)
    down = [[[y * stride_h - pad_h + place // kernel_w * dilation_h] for y in range(rows)] for place in range(area)]
    right = [[[x * stride_w - pad_w + place % kernel_w * dilation_w for x in range(columns)]] for place in range(area)]
    at = [
        (moved.narrow(3, axis, 1).squeeze(3) + torch.tensor(unmoved, dtype=torch.float32)).flatten(0, 1).flatten(1)
        for axis, unmoved in enumerate((down, right))
    ]
    parts = image.reshape(batch * offset_groups, channels // offset_groups, *image.shape[-2:])
    sampled = _between(parts, *at).reshape(batch, offset_groups, -1, area, rows * columns)
    if use_mask:
        sampled = sampled * mask.reshape(batch, offset_groups, 1, area, rows * columns)
    read = sampled.reshape(batch, groups, channels // groups * area, rows * columns)
    filters = weight.reshape(1, groups, weight.shape[0] // groups, -1)
    made = (filters @ read).reshape(batch, weight.shape[0], rows, columns)
    # PyTorch passes an unused mask, which is read here all the same, because TVM drops arguments that nothing reads.
    return made + bias.reshape(-1, 1, 1) + (0.0 if use_mask else 0 * mask.sum())


SAMPLING: dict[str, Callable[..., Tensor]] = {"grid_sampler": _grid_sampler, "deform_conv2d": _deform_conv2d}
