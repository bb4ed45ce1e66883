"""Depthwise convolutions on a CPU: vectors along the channels, a few pixels of a row in registers.

Nothing is padded: taps that fall outside the image are left out, rows by the bounds of a loop and columns because the
tiles at the left and right edge have code of their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from aap_hw.compile.emit import Steps, constant, kernel_code, lane_loop, lanes_for, loop, padded_image, store, vector
from aap_hw.compile.function import Argument, KernelFunction, apply_epilogue
from aap_hw.compile.kernel import KernelKey
from aap_hw.compile.shape import ConvolutionShape
from aap_hw.compile.target import CpuTarget


def build_depthwise(key: KernelKey, channels: int, target: CpuTarget) -> KernelFunction:
    """Code of a ``depthwise_conv2d`` key with ``channels`` input and output channels."""
    shape = ConvolutionShape.of(key)
    (kh, kw), (sh, sw), (dh, dw) = shape.kernel, shape.stride, shape.dilation
    (height, width), (top, left) = shape.size, shape.padding
    lanes = lanes_for(channels, target)
    # Twice that many registers hold the sums and the pixels that neighbours share; 7 divides the usual image sizes.
    length = min(target.registers // 4 - 1, shape.out_width)
    along, deep = Steps(shape.out_width, length), Steps(channels, lanes)
    output_shape = (key.batch, shape.out_height, shape.out_width, channels)
    arguments = [
        Argument("activation", shape.image(channels)),
        *([Argument("residual", output_shape)] if "add" in key.epilogue else []),
        Argument("weight", (kh, kw, channels)),
        Argument("bias", (channels,)),
    ]

    def is_inside(x: int, rx: int) -> bool:
        return 0 <= x * sw + rx * dw - left < width

    # Tiles at a known place may lack taps; those between the first and the last few that do are all alike.
    whole = [
        all(is_inside(along.start(i) + p, r) for p in range(length) for r in range(kw)) for i in range(along.count)
    ]
    inner = range(whole.index(True), along.count - whole[::-1].index(True)) if True in whole else range(0)

    def body(image: Any, *others: Any) -> None:
        *residual, weights, bias, output = others
        source = padded_image(image, replace(shape, padding=(0, 0)), channels, target)

        def tile_at(n: Any, y: Any, x: Any, c: Any) -> None:
            """One tile; of a place known as an integer, only the taps that exist."""
            sums = T.alloc_buffer((length * lanes,), "float32", scope="local")
            for p in range(length):
                store(sums, constant(0.0, lanes), p * lanes, lanes)
            first = T.bind(y * sh - top)
            begin = T.bind(T.max(0, (dh - 1 - first) // dh)) if top else 0
            end = T.bind(T.min(kh, (height - first + dh - 1) // dh))
            with T.serial(begin, end) as ry:
                row = T.bind(((n * height + first + ry * dh) * width + x * sw - left) * channels + c)
                for rx in range(kw):
                    weight = T.bind(vector(weights, (ry * kw + rx) * channels + c, lanes))
                    for p in range(length):
                        if isinstance(x, int) and not is_inside(x + p, rx):
                            continue
                        value = vector(source, row + (p * sw + rx * dw) * channels, lanes)
                        store(sums, vector(sums, p * lanes, lanes) + value * weight, p * lanes, lanes)
            for p in range(length):
                at = T.bind(((n * shape.out_height + y) * shape.out_width + x + p) * channels + c)
                with lane_loop(lanes) as i:
                    added = residual[0][at + i] if residual else None
                    value = apply_epilogue(sums[p * lanes + i], key.epilogue, bias[c + i], added)
                    T.buffer_store(output, value, [at + i])

        with loop(key.batch * shape.out_height, target) as line:
            n, y = T.bind(line // shape.out_height), T.bind(line % shape.out_height)
            with T.serial(0, deep.count) as step:
                c = T.bind(deep.start(step))
                for i in range(along.count):
                    if i not in inner:
                        tile_at(n, y, along.start(i), c)
                if len(inner):
                    with T.serial(0, len(inner)) as i:
                        tile_at(n, y, T.bind(along.start(i + inner.start)), c)

    tensors = [(argument.role, argument.shape) for argument in arguments]
    code = kernel_code([*tensors, ("output", output_shape)], body)

    def pack(dense: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(dense.reshape(channels, kh, kw).transpose(1, 2, 0))

    return KernelFunction(code, tuple(arguments), output_shape, pack)
