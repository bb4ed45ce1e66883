"""Winograd's minimal filtering for 3x3 convolutions of stride 1: fewer multiplications, the same result up to rounding.

An output tile of m x m pixels comes from (m + 2) x (m + 2) inputs. Both are transformed so that the convolution becomes
one multiplication a position, hence (m + 2)^2 matrix products over the channels of all tiles together: with m = 4 they
are 36 multiplications for 16 pixels, where the direct way takes 144 (Lavin and Gray, arXiv 1509.09308).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.code.function import KernelFunction, apply_epilogue
from aap_hw.compile.cpu.emit import (
    Steps,
    constant,
    lane_loop,
    lanes_for,
    loop,
    registers,
    scratch,
    store,
    vector,
)
from aap_hw.compile.cpu.kernels import Packing
from aap_hw.compile.cpu.tiles import Costs, Tile, accumulate, choose_tile, run_of
from aap_hw.compile.cpu.weighted import weighted_kernel
from aap_hw.compile.families.convolution import ConvolutionShape
from aap_hw.compile.families.pitch import pitch_of
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.precision import BYTES, FLOAT32
from aap_hw.compile.keys.target import CpuTarget

Matrix = list[list[Fraction]]

# Where the polynomials are evaluated, beside infinity. For m = 4 reciprocal pairs halve the rounding error of the usual
# 1 and 2 (root mean square over 128 random channels: 6e-7 against 1.3e-6), and these are exact in float32.
POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
}
# Cycles a position of a tile takes for each vector of channels, on its way in and on its way out.
CYCLES_IN, CYCLES_OUT = 12, 9
# Steps of a reduction that a register tile's first and last instructions cost.
STEPS_TO_START = 3
# Registers in which LLVM keeps constants of the transforms while it multiplies.
HELD_REGISTERS = 2


def transforms(m: int) -> tuple[Matrix, Matrix, Matrix]:
    """The matrices (B^T, G, A^T) of F(m, 3): y = A^T [(G g) * (B^T d)] for a filter g and m + 2 inputs d.

    Cook-Toom interpolation at ``POINTS[m]`` and infinity.
    """
    points = POINTS[m]
    scale = [math.prod((p - q for q in points if q != p), start=Fraction(1)) for p in points]
    at = [[p**i for p in points] + [Fraction(i == m - 1)] for i in range(m)]
    g = [[p**k / s for k in range(3)] for p, s in zip(points, scale, strict=True)]
    g.append([Fraction(0), Fraction(0), Fraction(1)])
    bt = [[*_polynomial([q for q in points if q != p]), Fraction(0)] for p in points]
    bt.append(_polynomial(points))
    return bt, g, at


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), lowest power first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [s - root * c for s, c in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


def choose_winograd(address: Address, target: CpuTarget, direct: float | None = None) -> int | None:
    """The output tile size m that is estimated to take the fewest cycles, or None where the direct way does.

    The direct way takes so many cycles on one thread, or what it takes in float32. Threads share the tiles, and each of
    them reads all the weights.
    """
    key, width_in, width_out = address.key, address.width_in, address.width_out
    shape = ConvolutionShape.of(key)
    window = shape.kernel, shape.stride, shape.dilation, shape.groups
    fits = window == ((3, 3), (1, 1), (1, 1), 1) and not shape.planar
    # The matrices are exact in float32, and smaller types would overflow.
    if key.op != "conv2d" or not (fits and key.types.sum == FLOAT32) or min(width_in, width_out) < target.lanes // 2:
        return None

    def products(count: int, pixels: int, depth: int) -> float:
        """Cycles of ``count`` products of (pixels, depth) with (depth, width_out) matrices."""
        run = run_of(depth, target)
        tile = _tile(pixels, depth, width_out, target)
        arithmetic = count * (depth + STEPS_TO_START) * tile.cycles(pixels, width_out, Costs(run=run))
        weights = BYTES[FLOAT32] * count * depth * width_out
        return max(arithmetic, weights / target.streamed_bytes if weights > target.l2_bytes else 0.0)

    def cycles(m: int) -> float:
        tiles = key.batch * math.ceil(shape.out_height / m) * math.ceil(shape.out_width / m)
        share, positions = math.ceil(tiles / target.threads), (m + 2) ** 2
        moved = positions * share * (CYCLES_IN * width_in + CYCLES_OUT * width_out) / target.lanes
        return products(positions, share, width_in) + moved

    best = min(POINTS, key=cycles)
    if direct is None:
        direct = products(1, key.batch * shape.out_height * shape.out_width, 9 * width_in)
    return best if cycles(best) < direct / target.threads else None


def transformed(address: Address, m: int, target: CpuTarget) -> Packing:
    """Weights transformed for tiles of m x m outputs: of each position, one slice of output channels after another."""
    _, _, tile = _blocks(address, m, target)
    positions, groups = (m + 2) ** 2, Steps(address.width_out, tile.channels)
    matrix = np.array(transforms(m)[1], np.float64)

    def pack(dense: np.ndarray) -> np.ndarray:
        filters = dense.reshape(address.width_out, address.width_in, 3, 3).astype(np.float64)
        moved = np.einsum("ia,kcab,jb->ijck", matrix, filters, matrix, optimize=True).reshape(
            positions, address.width_in, address.width_out
        )
        chosen = [moved[:, :, (s := groups.start(i)) : s + tile.channels] for i in range(groups.count)]
        return np.stack(chosen, axis=1).astype(dense.dtype).ravel()

    return Packing((positions * groups.count * address.width_in * tile.channels,), pack)


def _blocks(address: Address, m: int, target: CpuTarget) -> tuple[int, int, Tile]:
    """Output tiles of the batch, how many of them are transformed together, and the register tile of their product."""
    shape = ConvolutionShape.of(address.key)
    tiles = shape.batch * math.ceil(shape.out_height / m) * math.ceil(shape.out_width / m)
    block = _tiles_in_block(tiles, (m + 2) ** 2 * (address.width_in + address.width_out), target)
    return tiles, block, _tile(block, address.width_in, address.width_out, target)


def build_winograd(address: Address, m: int, target: CpuTarget) -> KernelFunction:
    """Code of a ``conv2d`` kernel with a 3x3 window of stride 1, by tiles of m x m outputs."""
    key, width_in, width_out = address.key, address.width_in, address.width_out
    shape, type_ = ConvolutionShape.of(key), key.types.sum
    bt, _, at_matrix = transforms(m)
    side, positions = m + 2, (m + 2) ** 2
    down, across = math.ceil(shape.out_height / m), math.ceil(shape.out_width / m)
    run = run_of(width_in, target)
    tiles, block, tile = _blocks(address, m, target)
    blocks = math.ceil(tiles / block)
    along, groups = Steps(block, tile.pixels), Steps(width_out, tile.channels)
    read, written = Steps(width_in, lanes_for(width_in, target)), Steps(width_out, lanes_for(width_out, target))
    (height, width), (top, left) = shape.size, shape.padding
    pitch_in, pitch_out = pitch_of(key, "input", width_in, target), pitch_of(key, "output", width_out, target)
    # A little more than a block: powers of two would put all positions of a pixel in the same few cache lines.
    input_stride, product_stride = block * width_in + target.lanes, block * width_out + target.lanes

    def body(image: Any, *others: Any) -> None:
        *residual, weights, bias, output = others

        def place_of(index: Any) -> tuple[Any, Any, Any]:
            """Image, first output row and column of a tile; what a block lacks at the end repeats the last tile."""
            number = T.bind(T.min(index, tiles - 1) if tiles % block else index)
            n, place = T.bind(number // (down * across)), T.bind(number % (down * across))
            return n, T.bind(place // across * m), T.bind(place % across * m)

        def transform_input(inputs: Any, t: Any, n: Any, y: Any, x: Any, guarded: bool) -> None:
            """V = B^T d B of one tile; ``guarded`` if it reaches over the edge of the image."""
            lanes = read.length

            def pixel(i: int, j: int, c: Any) -> Any:
                value = vector(image, ((n * height + y + i) * width + x + j) * pitch_in + c, lanes)
                exists = tirx.all(y + i >= 0, y + i < height, x + j >= 0, x + j < width)
                return T.if_then_else(exists, value, constant(0.0, lanes, type_)) if guarded else value

            with T.serial(0, read.count) as step:
                c = T.bind(read.start(step))
                with T.serial(0, side) as j:
                    column = [T.bind(pixel(i, j, c)) for i in range(side)]
                    for i in range(side):
                        at = (i * side + j) * input_stride + t * width_in + c
                        store(inputs, _combine(bt[i], column, lanes, type_), at, lanes)
                with T.serial(0, side) as i:
                    places = [(i * side + j) * input_stride + t * width_in + c for j in range(side)]
                    line = [T.bind(vector(inputs, place, lanes)) for place in places]
                    for j in range(side):
                        store(inputs, _combine(bt[j], line, lanes, type_), places[j], lanes)

        def multiply(inputs: Any, products: Any, position: Any, group: Any, step: Any) -> None:
            """One register tile of the product of one position's inputs and weights."""
            first, c = T.bind(along.start(step)), T.bind(groups.start(group))
            pixels = T.bind(position * input_stride + first * width_in)
            start = T.bind((position * groups.count + group) * width_in * tile.channels)
            sums = accumulate(
                tile,
                (width_in,),
                lambda k, p: vector(inputs, pixels + p * width_in + k, run),
                lambda k, v: vector(weights, start + k * tile.channels + v * tile.lanes, tile.lanes),
                type_,
                run=run,
            )
            for p in range(tile.pixels):
                for v in range(tile.vectors):
                    at = T.bind(position * product_stride + (first + p) * width_out + c + v * tile.lanes)
                    with lane_loop(tile.lanes) as i:
                        T.buffer_store(products, sums(p, v, i), [at + i])

        def transform_output(products: Any, t: Any, n: Any, y: Any, x: Any) -> None:
            """Y = A^T M A of one tile, with the epilogue."""
            lanes = written.length
            with T.serial(0, written.count) as step:
                c = T.bind(written.start(step))
                # Not in place: the last step meets channels again that the one before it has done.
                half = registers(m * side * lanes, type_)
                pixel = registers(lanes, type_)
                with T.serial(0, side) as j:
                    places = [(i * side + j) * product_stride + t * width_out + c for i in range(side)]
                    column = [T.bind(vector(products, place, lanes)) for place in places]
                    for i in range(m):
                        store(half, _combine(at_matrix[i], column, lanes, type_), (i * side + j) * lanes, lanes)
                with T.serial(0, m) as i:
                    line = [T.bind(vector(half, (i * side + j) * lanes, lanes)) for j in range(side)]
                    for j in range(m):
                        store(pixel, _combine(at_matrix[j], line, lanes, type_), 0, lanes)
                        with T.If(tirx.all(y + i < shape.out_height, x + j < shape.out_width)), T.Then():
                            place = (n * shape.out_height + y + i) * shape.out_width + x + j
                            at = T.bind(place * pitch_out + c)
                            with lane_loop(lanes) as k:
                                added = residual[0][place * width_out + c + k] if residual else None
                                value = apply_epilogue(pixel[k], key.epilogue, bias[c + k], added)
                                T.buffer_store(output, value, [at + k])

        with loop(blocks, target) as number:
            inputs, products = (scratch(positions * n, type_) for n in (input_stride, product_stride))
            with T.serial(0, block) as t:
                n, y, x = place_of(number * block + t)
                y, x = T.bind(y - top), T.bind(x - left)
                with T.If(tirx.all(y >= 0, x >= 0, y + side <= height, x + side <= width)):
                    with T.Then():
                        transform_input(inputs, t, n, y, x, guarded=False)
                    with T.Else():
                        transform_input(inputs, t, n, y, x, guarded=True)
            with T.grid(positions, groups.count, along.count) as (position, group, step):
                multiply(inputs, products, position, group, step)
            with T.serial(0, block) as t:
                transform_output(products, t, *place_of(number * block + t))

    packed = transformed(address, m, target)
    return weighted_kernel(address, shape.image(pitch_in), packed, shape.output(pitch_out), body)


def _tile(tiles: int, depth: int, channels: int, target: CpuTarget) -> Tile:
    fewer = replace(target, registers=target.registers - HELD_REGISTERS)
    return choose_tile(tiles, channels, fewer, run=run_of(depth, target))


def _tiles_in_block(tiles: int, values_a_tile: int, target: CpuTarget) -> int:
    """Tiles whose transformed inputs and products stay in the core's own cache, in equal blocks for all threads."""
    fitting = max(1, target.l2_bytes * 3 // 4 // (BYTES[FLOAT32] * values_a_tile))
    least = min(8, tiles)  # below that, every weight that is loaded serves too few tiles
    blocks = math.ceil(tiles / min(tiles, max(fitting, least)))
    blocks = math.ceil(blocks / target.threads) * target.threads
    return math.ceil(tiles / min(blocks, tiles))


def _combine(coefficients: Sequence[Fraction], values: Sequence[Any], lanes: int, type_: str) -> Any:
    """The sum of coefficient x value."""
    total = None
    for coefficient, value in zip(coefficients, values, strict=True):
        if coefficient == 0:
            continue
        term = value if abs(coefficient) == 1 else value * constant(float(abs(coefficient)), lanes, type_)
        if total is None:
            total = term if coefficient > 0 else constant(0.0, lanes, type_) - term
        else:
            total = total + term if coefficient > 0 else total - term
    return total
