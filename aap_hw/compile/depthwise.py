"""Depthwise convolutions on a CPU: vectors along the channels, a few pixels in registers, padding made row by row.

The zero-padded rows that a band of output rows needs are copied just before the band is computed, so that they are
read from the nearest cache.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import te, tirx
from tvm.s_tir import Schedule

from aap_hw.compile.convolution import lanes_for, padded_image
from aap_hw.compile.function import Argument, KernelFunction, apply_epilogue, primfunc, scheduled_code
from aap_hw.compile.kernel import KernelKey
from aap_hw.compile.shape import ConvolutionShape
from aap_hw.compile.target import CpuTarget

PIXELS = 8


def build_depthwise(key: KernelKey, channels: int, target: CpuTarget) -> KernelFunction:
    """Code of a ``depthwise_conv2d`` key with ``channels`` input and output channels."""
    shape = ConvolutionShape.of(key)
    (kh, kw), (sh, sw), (dh, dw) = shape.kernel, shape.stride, shape.dilation
    image = te.placeholder(shape.image(channels), name="image")
    weight = te.placeholder((kh, kw, channels), name="weight")
    bias = te.placeholder((channels,), name="bias")
    source = padded_image(image, shape, channels)
    ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")
    output_shape = (key.batch, shape.out_height, shape.out_width, channels)
    sums = te.compute(
        output_shape,
        lambda n, y, x, c: te.sum(source[n, y * sh + ry * dh, x * sw + rx * dw, c] * weight[ry, rx, c], axis=[ry, rx]),
        name="sums",
    )
    residual = te.placeholder(output_shape, name="residual")
    output = te.compute(
        output_shape,
        lambda n, y, x, c: apply_epilogue(sums[n, y, x, c], key.epilogue, bias[c], residual[n, y, x, c]),
        name="output",
    )
    added = [residual] if "add" in key.epilogue else []
    arguments = [
        Argument("activation", shape.image(channels)),
        *[Argument("residual", output_shape) for _ in added],
        Argument("weight", (kh, kw, channels)),
        Argument("bias", (channels,)),
    ]
    pixels = max(d for d in range(1, PIXELS + 1) if shape.out_width % d == 0)
    code = _schedule(primfunc([image, *added, weight, bias, output]), shape, pixels, channels, target)

    def pack(dense: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(dense.reshape(channels, kh, kw).transpose(1, 2, 0))

    return KernelFunction(code, tuple(arguments), output_shape, pack)


def _rows_in_band(shape: ConvolutionShape, channels: int, target: CpuTarget) -> int:
    """Output rows whose padded input fits a quarter of the core's own cache; a divisor of the output height."""
    row_bytes = (shape.size[1] + 2 * shape.padding[1]) * channels * 4
    budget = max(1, target.l2_bytes // 4 // row_bytes // shape.stride[0])
    return max(d for d in range(1, shape.out_height + 1) if shape.out_height % d == 0 and d <= budget)


def _schedule(
    code: tirx.PrimFunc, shape: ConvolutionShape, pixels: int, channels: int, target: CpuTarget
) -> tirx.PrimFunc:
    sch = Schedule(tvm.IRModule({"main": code}))
    sums, output = sch.get_sblock("sums", "main"), sch.get_sblock("output", "main")
    n, y, x, c = sch.get_loops(output)
    band, row = sch.split(y, [None, _rows_in_band(shape, channels, target)])
    pixel_tiles, pixel = sch.split(x, [None, pixels])
    vector, lane = sch.split(c, [None, lanes_for(channels, target)])
    sch.reorder(n, band, row, pixel_tiles, vector, pixel, lane)
    bands = sch.fuse(n, band)
    if target.threads > 1:
        sch.parallel(bands)
    sch.compute_at(sums, vector, preserve_unit_loops=True)
    *spatial, channel, ry, rx = sch.get_loops(sums)[-6:]
    sch.reorder(ry, rx, *spatial, channel)
    # With a tail every lane is guarded: unrolling the window as well takes seconds to compile and is no faster.
    has_tail = channels % lanes_for(channels, target) != 0
    for loop in (*([] if has_tail else [ry, rx]), *spatial, pixel):
        sch.unroll(loop)
    for block in sch.get_child_blocks(sch.get_sblock("root", "main")):
        if sch.get(block).name_hint == "padded":
            sch.compute_at(block, bands, preserve_unit_loops=True)
            last = sch.get_loops(block)[-1]
            if not has_tail:
                sch.vectorize(sch.split(last, [None, lanes_for(channels, target)])[1])
    sch.vectorize(channel)
    sch.vectorize(lane)
    sch.decompose_reduction(sums, ry)
    return scheduled_code(sch)
