"""Dense convolutions and linear layers on a CPU: one register-tiled schedule for all of them.

A tile of pixels times a few vectors of output channels is accumulated in registers over the whole reduction.
Weights are packed so that one tile's weights are contiguous; output channels are padded to full tiles inside the
kernel, so that any channel count compiles. Depthwise and grouped convolutions are elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import te, tirx
from tvm.s_tir import Schedule

from aap_hw.compile.function import Argument, KernelFunction, apply_epilogue, primfunc, scheduled_code
from aap_hw.compile.kernel import KernelKey
from aap_hw.compile.shape import ConvolutionShape
from aap_hw.compile.target import CpuTarget

# Independent accumulators that keep two fused multiply-add units busy over their latency of about five cycles.
ACCUMULATORS_FOR_FULL_RATE = 10


@dataclass(frozen=True)
class Tile:
    """Register tile: ``pixels`` x ``vectors`` accumulators of ``lanes`` output channels each."""

    pixels: int
    vectors: int
    lanes: int

    @property
    def channels(self) -> int:
        """Output channels of one tile."""
        return self.vectors * self.lanes


def choose_tile(pixels: int, channels: int, target: CpuTarget) -> Tile:
    """The tile with the most arithmetic for each load that fits the registers and wastes little of its last tile.

    ``pixels`` is the length that the pixel tile must divide.
    """
    lanes = lanes_for(channels, target)
    vectors_needed = math.ceil(channels / lanes)

    def score(tile: Tile) -> float:
        accumulators = tile.pixels * tile.vectors
        useful = vectors_needed / (math.ceil(vectors_needed / tile.vectors) * tile.vectors)
        loads = accumulators / (tile.pixels + tile.vectors)
        return useful * loads * min(1.0, accumulators / ACCUMULATORS_FOR_FULL_RATE)

    candidates = [
        Tile(p, v, lanes)
        for v in range(1, min(vectors_needed, target.registers) + 1)
        for p in range(1, min(pixels, target.registers) + 1)
        if pixels % p == 0 and p * v + v + 1 < target.registers + (target.lanes < 16)
    ]
    return max(candidates, key=lambda tile: (score(tile), tile.pixels))


def lanes_for(channels: int, target: CpuTarget) -> int:
    """Vector length for a channel count: half a register where that leaves no tail and a whole one would."""
    half = target.lanes // 2
    return half if channels % target.lanes and channels % half == 0 and half >= 4 else target.lanes


def build_convolution(key: KernelKey, width_in: int, width_out: int, target: CpuTarget) -> KernelFunction:
    """Code of a ``conv2d`` or ``linear`` key at the given channel counts."""
    shape = ConvolutionShape.of(key)
    tile = choose_tile(shape.out_width, width_out, target)
    tiles = math.ceil(width_out / tile.channels)
    (kh, kw), (sh, sw), (dh, dw) = shape.kernel, shape.stride, shape.dilation

    image = te.placeholder(shape.image(width_in), name="image")
    weight = te.placeholder((tiles, kh, kw, width_in, tile.channels), name="weight")
    bias = te.placeholder((tiles * tile.channels,), name="bias")
    source = padded_image(image, shape, width_in)
    ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")
    rc = te.reduce_axis((0, width_in), "rc")
    sums = te.compute(
        (key.batch, shape.out_height, shape.out_width, tiles * tile.channels),
        lambda n, y, x, c: te.sum(
            source[n, y * sh + ry * dh, x * sw + rx * dw, rc]
            * weight[c // tile.channels, ry, rx, rc, c % tile.channels],
            axis=[ry, rx, rc],
        ),
        name="sums",
    )
    output_shape = (key.batch, shape.out_height, shape.out_width, width_out)
    residual = te.placeholder(output_shape, name="residual")
    output = te.compute(
        output_shape,
        lambda n, y, x, c: apply_epilogue(sums[n, y, x, c], key.epilogue, bias[c], residual[n, y, x, c]),
        name="output",
    )
    arguments = [Argument("activation", shape.image(width_in))]
    tensors = [image]
    if "add" in key.epilogue:
        arguments.append(Argument("residual", output_shape))
        tensors.append(residual)
    arguments += [
        Argument("weight", tuple(int(d) for d in weight.shape)),
        Argument("bias", (tiles * tile.channels,)),
    ]
    weights_first = _weights_outermost(shape, width_in, width_out, target)
    code = _schedule(primfunc([*tensors, weight, bias, output]), tile, weights_first, target)

    def pack(dense: np.ndarray) -> np.ndarray:
        padded = np.zeros((tiles * tile.channels, width_in, kh, kw), dense.dtype)
        padded[:width_out] = dense.reshape(width_out, width_in, kh, kw)
        return np.ascontiguousarray(padded.reshape(tiles, tile.channels, width_in, kh, kw).transpose(0, 3, 4, 2, 1))

    return KernelFunction(code, tuple(arguments), output_shape, pack)


def padded_image(image: te.Tensor, shape: ConvolutionShape, channels: int) -> te.Tensor:
    """The image as zero-padded NHWC; the image itself where there is nothing to do."""
    (h, w), (top, left) = shape.size, shape.padding
    if shape.padding == (0, 0) and not shape.planar:
        return image

    def pixel(n: tirx.Var, y: tirx.Var, x: tirx.Var, c: tirx.Var) -> tirx.PrimExpr:
        y, x = y - top, x - left
        value = image[n, c, y, x] if shape.planar else image[n, y, x, c]
        if shape.padding == (0, 0):
            return value
        inside = tirx.all(y >= 0, y < h, x >= 0, x < w)
        return tirx.if_then_else(inside, value, tirx.const(0.0, "float32"))

    return te.compute((shape.batch, h + 2 * top, w + 2 * left, channels), pixel, name="padded")


def _weights_outermost(shape: ConvolutionShape, width_in: int, width_out: int, target: CpuTarget) -> bool:
    """Keep a tile's weights in cache and stream the image past them where the weights are the larger of the two."""
    taps = shape.kernel[0] * shape.kernel[1]
    weights = taps * width_in * width_out
    image = shape.batch * shape.size[0] * shape.size[1] * width_in
    return weights > image or weights * 4 > target.l2_bytes // 2


def _schedule(code: tirx.PrimFunc, tile: Tile, weights_first: bool, target: CpuTarget) -> tirx.PrimFunc:
    sch = Schedule(tvm.IRModule({"main": code}))
    sums, output = sch.get_sblock("sums", "main"), sch.get_sblock("output", "main")
    n, y, x, c = sch.get_loops(output)
    pixel_tiles, pixel = sch.split(x, [None, tile.pixels])
    channel_tiles, vector, lane = sch.split(c, [None, tile.vectors, tile.lanes])
    shared = [n, channel_tiles, y] if weights_first else [n, y]
    serial = [pixel_tiles] if weights_first else [pixel_tiles, channel_tiles]
    sch.reorder(*shared, *serial, pixel, vector, lane)
    if target.threads > 1:
        sch.parallel(sch.fuse(*shared))
    sch.compute_at(sums, serial[-1], preserve_unit_loops=True)
    *spatial, channel, ry, rx, rc = sch.get_loops(sums)[-7:]
    sum_vector, sum_lane = sch.split(channel, [tile.vectors, tile.lanes])
    sch.reorder(ry, rx, rc, *spatial, sum_vector, sum_lane)
    for loop in (*spatial, sum_vector, pixel, vector):
        sch.unroll(loop)
    sch.vectorize(sum_lane)
    sch.vectorize(lane)
    for block in sch.get_child_blocks(sch.get_sblock("root", "main")):
        if sch.get(block).name_hint == "padded":
            _schedule_padding(sch, block, target)
    sch.decompose_reduction(sums, ry)
    return scheduled_code(sch)


def _schedule_padding(sch: Schedule, block: object, target: CpuTarget) -> None:
    n, y, _, channel = sch.get_loops(block)
    rows = sch.fuse(n, y)
    if target.threads > 1:
        sch.parallel(rows)
    if int(sch.get(channel).extent) % target.lanes == 0:
        sch.vectorize(sch.split(channel, [None, target.lanes])[1])
