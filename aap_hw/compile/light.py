"""Light kernels: pooling, element-wise steps and changes of shape, for which memory traffic is the whole cost.

All of them share one schedule: rows over the threads, vectors along the channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import te, tirx
from tvm.s_tir import Schedule

from aap_hw.compile.function import Argument, KernelFunction, apply_epilogue, primfunc, scheduled_code
from aap_hw.compile.kernel import KernelKey
from aap_hw.compile.target import CpuTarget

Expression = tuple[list[te.Tensor], te.Tensor]


def build_light(key: KernelKey, width_in: int, width_out: int, target: CpuTarget) -> KernelFunction:
    """Code of a light kernel; see ``LIGHT_KERNELS`` for the operators."""
    inputs, output = LIGHT_KERNELS[key.op](key, width_in, width_out)
    roles = ["activation", *["residual"] * (len(inputs) - 1)]
    arguments = tuple(
        Argument(role, tuple(int(d) for d in tensor.shape))  # type: ignore[arg-type]
        for role, tensor in zip(roles, inputs, strict=True)
    )
    code = _schedule(primfunc([*inputs, output]), target)
    return KernelFunction(code, arguments, tuple(int(d) for d in output.shape))


def _image(key: KernelKey, channels: int, name: str = "image") -> te.Tensor:
    height, width = key.size or (1, 1)
    return te.placeholder((key.batch, height, width, channels), name=name)


def _max_pool(key: KernelKey, width: int, _: int) -> Expression:
    return _pool(key, width, te.max, tirx.min_value("float32"), divisor=1)


def _average_pool(key: KernelKey, width: int, _: int) -> Expression:
    kh, kw = key.pair("kernel")
    return _pool(key, width, te.sum, tirx.const(0.0, "float32"), divisor=kh * kw)


def _pool(key: KernelKey, channels: int, reduce: Callable[..., Any], outside: Any, divisor: int) -> Expression:
    image = _image(key, channels)
    (height, width), (kh, kw) = key.size, key.pair("kernel")
    (sh, sw), (top, left) = key.pair("stride"), key.pair("padding")
    ry, rx = te.reduce_axis((0, kh), "ry"), te.reduce_axis((0, kw), "rx")

    def pixel(n: Any, y: Any, x: Any, c: Any) -> Any:
        if not (top or left):
            return image[n, y, x, c]
        inside = tirx.all(y >= 0, y < height, x >= 0, x < width)
        return tirx.if_then_else(inside, image[n, y, x, c], outside)

    shape = (
        key.batch,
        (height + 2 * top - kh) // sh + 1,
        (width + 2 * left - kw) // sw + 1,
        channels,
    )
    reduced = te.compute(
        shape,
        lambda n, y, x, c: reduce(pixel(n, y * sh + ry - top, x * sw + rx - left, c), axis=[ry, rx]),
        name="reduced",
    )
    if divisor == 1:
        return [image], reduced
    scale = tirx.const(1.0 / divisor, "float32")
    return [image], te.compute(shape, lambda *i: reduced[i] * scale, name="output")


def _global_average_pool(key: KernelKey, channels: int, _: int) -> Expression:
    image = _image(key, channels)
    height, width = key.size
    ry, rx = te.reduce_axis((0, height), "ry"), te.reduce_axis((0, width), "rx")
    shape = (key.batch, 1, 1, channels)
    total = te.compute(shape, lambda n, y, x, c: te.sum(image[n, ry, rx, c], axis=[ry, rx]), name="reduced")
    scale = tirx.const(1.0 / (height * width), "float32")
    return [image], te.compute(shape, lambda *i: total[i] * scale, name="output")


def _activation(key: KernelKey, channels: int, _: int) -> Expression:
    image = _image(key, channels)
    return [image], te.compute(image.shape, lambda *i: apply_epilogue(image[i], [key.op], None, None), name="output")


def _add(key: KernelKey, channels: int, _: int) -> Expression:
    left, right = _image(key, channels, "left"), _image(key, channels, "right")
    return [left, right], te.compute(left.shape, lambda *i: left[i] + right[i], name="output")


def _subsample(key: KernelKey, channels: int, _: int) -> Expression:
    image = _image(key, channels)
    (height, width), (sh, sw) = key.size, key.pair("stride")
    shape = (key.batch, -(-height // sh), -(-width // sw), channels)
    return [image], te.compute(shape, lambda n, y, x, c: image[n, y * sh, x * sw, c], name="output")


def _pad_channels(key: KernelKey, width_in: int, width_out: int) -> Expression:
    image = _image(key, width_in)
    before = int(key.attribute("before", "0"))
    shape = (key.batch, *key.size, width_out)

    def value(n: Any, y: Any, x: Any, c: Any) -> Any:
        inside = tirx.all(c >= before, c < before + width_in)
        return tirx.if_then_else(inside, image[n, y, x, c - before], tirx.const(0.0, "float32"))

    return [image], te.compute(shape, value, name="output")


def _flatten(key: KernelKey, width_in: int, width_out: int) -> Expression:
    """(N, H, W, C) to (N, 1, 1, C*H*W) in PyTorch's order: channel first."""
    image = _image(key, width_in)
    height, width = key.size
    area = height * width
    return [image], te.compute(
        (key.batch, 1, 1, width_out),
        lambda n, _y, _x, f: image[n, f % area // width, f % width, f // area],
        name="output",
    )


def _to_nhwc(key: KernelKey, channels: int, _: int) -> Expression:
    height, width = key.size
    image = te.placeholder((key.batch, channels, height, width), name="image")
    shape = (key.batch, height, width, channels)
    return [image], te.compute(shape, lambda n, y, x, c: image[n, c, y, x], name="output")


def _to_nchw(key: KernelKey, channels: int, _: int) -> Expression:
    image = _image(key, channels)
    shape = (key.batch, channels, *key.size)
    return [image], te.compute(shape, lambda n, c, y, x: image[n, y, x, c], name="output")


LIGHT_KERNELS: dict[str, Callable[[KernelKey, int, int], Expression]] = {
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "global_avg_pool2d": _global_average_pool,
    "relu": _activation,
    "relu6": _activation,
    "add": _add,
    "subsample": _subsample,
    "pad_channels": _pad_channels,
    "flatten": _flatten,
    "to_nhwc": _to_nhwc,
    "to_nchw": _to_nchw,
}


def _schedule(code: tirx.PrimFunc, target: CpuTarget) -> tirx.PrimFunc:
    sch = Schedule(tvm.IRModule({"main": code}))
    blocks = {sch.get(b).name_hint: b for b in sch.get_child_blocks(sch.get_sblock("root", "main"))}
    last = blocks.get("output", blocks.get("reduced"))
    n, y, x, c = sch.get_loops(last)[:4]
    outer = sch.fuse(n, y)
    lanes = target.lanes
    tail_free = int(sch.get(c).extent) % lanes == 0
    vectors, lane = sch.split(c, [None, lanes]) if tail_free else (c, None)
    if target.threads > 1:
        sch.parallel(outer)
    if (reduced := blocks.get("reduced")) is not None:
        if last is not reduced:
            sch.compute_at(reduced, vectors if tail_free else x, preserve_unit_loops=True)
        _schedule_reduction(sch, reduced, lanes)
    elif lane is not None:
        sch.vectorize(lane)
        return scheduled_code(sch)
    if lane is not None and last is not reduced:
        sch.vectorize(lane)
    return scheduled_code(sch)


def _schedule_reduction(sch: Schedule, block: Any, lanes: int) -> None:
    """Accumulate whole vectors: channels innermost, the window outside them."""
    *_, ry, rx = loops = sch.get_loops(block)
    channel = loops[-3]
    sch.reorder(ry, rx, channel)
    if int(sch.get(channel).extent) % lanes == 0 and int(sch.get(channel).extent) <= lanes:
        sch.vectorize(channel)
    sch.decompose_reduction(block, ry)
