"""Dense convolutions and linear layers on a CPU: one register-tiled loop nest for all of them.

A tile of pixels times a few vectors of output channels is accumulated in registers over the whole reduction.
Weights are packed so that one tile's weights are contiguous. 3x3 convolutions that are cheaper another way are left to
`winograd`; depthwise ones are elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.emit import Steps, accumulate, choose_tile, kernel_code, lane_loop, loop, padded_image, vector
from aap_hw.compile.function import Argument, KernelFunction, apply_epilogue
from aap_hw.compile.kernel import KernelKey
from aap_hw.compile.shape import ConvolutionShape
from aap_hw.compile.target import CpuTarget
from aap_hw.compile.winograd import build_winograd, choose_winograd


def build_convolution(key: KernelKey, width_in: int, width_out: int, target: CpuTarget) -> KernelFunction:
    """Code of a ``conv2d`` or ``linear`` key at the given channel counts."""
    if (size := choose_winograd(key, width_in, width_out, target)) is not None:
        return build_winograd(key, width_in, width_out, size, target)
    return _build_direct(key, width_in, width_out, target)


def _build_direct(key: KernelKey, width_in: int, width_out: int, target: CpuTarget) -> KernelFunction:
    shape = ConvolutionShape.of(key)
    (kh, kw), (sh, sw), (dh, dw) = shape.kernel, shape.stride, shape.dilation
    rows, row = key.batch * shape.out_height, shape.out_width
    # Without a window every pixel of the batch is like every other: one row of them.
    pointwise = (shape.kernel, shape.stride, shape.padding) == ((1, 1), (1, 1), (0, 0))
    if pointwise:
        rows, row = 1, rows * row
    # Without dilation the columns of a window lie side by side in memory, channels included.
    window = (kh, kw * width_in) if dw == 1 else (kh, kw, width_in)
    tile = choose_tile(row, width_out, target)
    along, groups = Steps(row, tile.pixels), Steps(width_out, tile.channels)
    group_size = kh * kw * width_in * tile.channels
    output_shape = (key.batch, shape.out_height, shape.out_width, width_out)
    arguments = [
        Argument("activation", shape.image(width_in)),
        *([Argument("residual", output_shape)] if "add" in key.epilogue else []),
        Argument("weight", (groups.count * group_size,)),
        Argument("bias", (width_out,)),
    ]

    def body(image: Any, *others: Any) -> None:
        *residual, weights, bias, output = others
        source = padded_image(image, shape, width_in, target)
        height, width = shape.size[0] + 2 * shape.padding[0], shape.size[1] + 2 * shape.padding[1]

        def tile_of(group: Any, pixels: Any) -> None:
            y, x = (0, along.start(pixels)) if rows == 1 else (pixels // along.count, along.start(pixels % along.count))
            y, x, c = T.bind(y), T.bind(x), T.bind(groups.start(group))
            if pointwise:
                corner, across = T.bind(x * width_in), width_in
            else:
                n, line = y // shape.out_height, y % shape.out_height
                corner = T.bind(((n * height + line * sh) * width + x * sw) * width_in)
                across = sw * width_in

            def offset(indices: tuple[Any, ...], strides: tuple[int, ...]) -> Any:
                return sum((i * s for i, s in zip(indices, strides, strict=True)), 0)

            def pixel(*indices: Any) -> Any:
                *taps, p = indices
                strides = (dh * width * width_in, *([dw * width_in] if len(window) == 3 else []), 1)
                return source[corner + p * across + offset(tuple(taps), strides)]

            def weight(*indices: Any) -> Any:
                *taps, v = indices
                strides = (kw * width_in, *([width_in] if len(window) == 3 else []), 1)
                start = group * group_size + offset(tuple(taps), strides) * tile.channels + v * tile.lanes
                return vector(weights, start, tile.lanes)

            sums = accumulate(tile, window, pixel, weight)
            for v in range(tile.vectors):
                for p in range(tile.pixels):
                    channel = c + v * tile.lanes
                    at = T.bind((y * row + x + p) * width_out + channel)
                    with lane_loop(tile.lanes) as i:
                        added = residual[0][at + i] if residual else None
                        value = apply_epilogue(sums(p, v, i), key.epilogue, bias[channel + i], added)
                        T.buffer_store(output, value, [at + i])

        pixel_tiles = rows * along.count
        if _weights_outermost(shape, width_in, width_out, target):
            with loop(groups.count * pixel_tiles, target) as i:
                tile_of(T.bind(i // pixel_tiles), T.bind(i % pixel_tiles))
        else:
            with loop(pixel_tiles, target) as pixels, T.serial(0, groups.count) as group:
                tile_of(group, pixels)

    tensors = [(argument.role, argument.shape) for argument in arguments]
    code = kernel_code([*tensors, ("output", output_shape)], body)

    def pack(dense: np.ndarray) -> np.ndarray:
        taps = dense.reshape(width_out, width_in, kh, kw).transpose(2, 3, 1, 0).reshape(-1, width_out)
        return np.concatenate(
            [taps[:, (s := groups.start(g)) : s + tile.channels].ravel() for g in range(groups.count)]
        )

    return KernelFunction(code, tuple(arguments), output_shape, pack)


def _weights_outermost(shape: ConvolutionShape, width_in: int, width_out: int, target: CpuTarget) -> bool:
    """Keep a tile's weights in cache and stream the image past them where the weights are the larger of the two."""
    taps = shape.kernel[0] * shape.kernel[1]
    weights = taps * width_in * width_out
    image = shape.batch * shape.size[0] * shape.size[1] * width_in
    return weights > image or weights * 4 > target.l2_bytes // 2
