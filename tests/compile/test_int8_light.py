"""Proves that light kernels of bytes equal PyTorch in float64 on what the bytes stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm

from aap_hw.compile.code.quantized import Quantized
from aap_hw.compile.cpu.kernels import QUANTIZED
from aap_hw.compile.families.elementwise import ACTIVATIONS
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import FLOAT32_INT8, INT8, INT8_FLOAT32, Scale
from aap_hw.compile.library.build import build_kernel
from aap_hw.errors import UserError
from tests.compile.quantized import called, wrong
from tests.compile.running import target

BATCH, HEIGHT, WIDTH = 2, 6, 9
# Threads and width.
WAYS = [(1, 57), pytest.param(1, 1, marks=pytest.mark.slow), pytest.param(2, 96, marks=pytest.mark.slow)]
READ = Scale(0.05, 131), Scale(0.023, 17)
MADE = Scale(0.061, 77)
# Of those that move values or take the largest.
KEPT = READ[0]


@dataclass(frozen=True)
class Case:
    """A light kernel and what it does to images (N, C, H, W), of as many channels as widths has entries."""

    name: str
    operator: Callable[..., torch.Tensor]
    attributes: dict[str, Any] = field(default_factory=dict)
    widths: Callable[[int], Sequence[int]] = lambda c: [c]
    precision: str = INT8
    made: Scale = MADE


def windows(kernel: int, stride: int, padding: int, **more: str) -> dict[str, Any]:
    return {"kernel": (kernel, kernel), "stride": (stride, stride), "padding": (padding, padding), **more}


def shuffled(x: torch.Tensor) -> torch.Tensor:
    return F.channel_shuffle(x, 3)


def factors(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a normalisation, for each channel; some are below zero."""
    random = np.random.default_rng(channels)
    return random.uniform(-0.5, 1.5, channels).astype("float32"), random.standard_normal(channels).astype("float32")


def normalised(x: torch.Tensor) -> torch.Tensor:
    factor, summand = (torch.from_numpy(each.astype("f8"))[:, None, None] for each in factors(x.shape[1]))
    return x * factor + summand


TWO = lambda c: [c, c]  # noqa: E731
PARTS = lambda c: [c, 2 * c + 1]  # noqa: E731
CASES = [
    Case("quantize", lambda x: x, precision=FLOAT32_INT8),
    Case("quantize", lambda x: x, {"layout": "nchw"}, precision=FLOAT32_INT8),
    Case("dequantize", lambda x: x, precision=INT8_FLOAT32),
    Case("add", torch.add, widths=TWO),
    Case("add", lambda x, y: F.relu(x + y), {"epilogue": ("relu",)}, TWO),
    Case("add", lambda x, y: F.hardswish(x + y), {"epilogue": ("hardswish",)}, TWO),
    Case("add", torch.add, widths=TWO, precision=INT8_FLOAT32),
    Case("mul", torch.mul, widths=TWO),
    Case("scale_channels", lambda x, y: x * y[:, :, :1, :1], widths=TWO),
    Case("scale_channels", lambda x, y: x * y[:, :, :1, :1], widths=TWO, precision=INT8_FLOAT32),
    *[Case(name, getattr(F, name)) for name in ACTIVATIONS],
    Case("sigmoid", torch.sigmoid, precision=INT8_FLOAT32),
    Case("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 1), windows(3, 2, 1), made=KEPT),
    Case("max_pool2d", lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True), windows(2, 2, 0, ceil="yes"), made=KEPT),
    Case("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 2, 1), windows(3, 2, 1)),
    Case("avg_pool2d", lambda x: F.avg_pool2d(x, 2, 2), windows(2, 2, 0), precision=INT8_FLOAT32),
    Case("sum_pool2d", lambda x: F.avg_pool2d(x, 2, 2, divisor_override=3), windows(2, 2, 0, divisor="3")),
    Case("global_avg_pool2d", lambda x: x.mean((2, 3), keepdim=True)),
    Case("global_avg_pool2d", lambda x: x.mean((2, 3), keepdim=True), precision=INT8_FLOAT32),
    Case("concat", lambda *x: torch.cat(x, 1), {"parts": "2"}, PARTS),
    Case("concat", lambda *x: torch.cat(x, 1), {"parts": "2"}, PARTS, made=KEPT),
    Case("concat", lambda *x: F.relu(torch.cat(x, 1)), {"parts": "2", "epilogue": ("relu",)}, PARTS),
    Case("concat", lambda *x: torch.cat(x, 1), {"parts": "2"}, PARTS, INT8_FLOAT32),
    Case("subsample", lambda x: x[:, :, ::2, ::3], {"stride": (2, 3)}, made=KEPT),
    Case("channel_shuffle", shuffled, {"groups": "3"}, lambda c: [3 * c], made=KEPT),
    Case("channel_slice", lambda x: x[:, x.shape[1] // 2 :], {"side": "last"}, lambda c: [2 * c], made=KEPT),
    Case("flatten", lambda x: x.flatten(1)[:, :, None, None], made=KEPT),
    Case("pad", lambda x: F.pad(x, (2, 1, 0, 3)), {"padding": (0, 2), "padding_end": (3, 1)}, made=KEPT),
    Case("pad", lambda x: F.pad(x, (1, 1, 1, 1), value=-2.0), {"padding": (1, 1), "value": "-2"}, made=KEPT),
    Case("pad", lambda x: F.pad(x, (1, 1, 1, 1), "reflect"), {"padding": (1, 1), "mode": "reflect"}, made=KEPT),
    Case("pad_channels", lambda x: F.pad(x, (0, 0, 0, 0, 4, 4)), {"side": "middle"}, made=KEPT),
    Case("elementwise", F.gelu, {"expr": "gelu(x0)", "reads": ("nyxc",)}),
    Case("elementwise", F.mish, {"expr": "mish(x0)", "reads": ("nyxc",)}, precision=INT8_FLOAT32),
    Case(
        "elementwise",
        lambda x, y: torch.minimum(x, 2 * y[:, :, :1, :1]),
        {"expr": "minimum(x0,mul(x1,2))", "reads": ("nyxc", "nc")},
        TWO,
    ),
    Case("affine", lambda x: normalised(x)),
    Case("affine", lambda x: F.relu(normalised(x)), {"epilogue": ("relu",)}),
    Case("affine", lambda x: normalised(x), precision=INT8_FLOAT32),
    Case("concat", lambda *x: normalised(torch.cat(x, 1)), {"parts": "2", "epilogue": ("affine",)}, PARTS),
    Case(
        "concat",
        lambda *x: F.relu(normalised(torch.cat(x, 1))),
        {"parts": "2", "epilogue": ("affine", "relu")},
        PARTS,
        made=KEPT,
    ),
    Case("resize", lambda x: F.interpolate(x, (12, 18)), {"how": "nearest", "to": (12, 18)}, made=KEPT),
    Case("resize", lambda x: F.adaptive_max_pool2d(x, (4, 5)), {"how": "largest", "to": (4, 5)}, made=KEPT),
    Case("resize", lambda x: F.interpolate(x, (12, 15), mode="bilinear"), {"how": "linear", "to": (12, 15)}),
    Case(
        "resize",
        lambda x: F.interpolate(x, (3, 4), mode="bilinear"),
        {"how": "linear", "to": (3, 4)},
        precision=INT8_FLOAT32,
    ),
    Case("interleave", lambda *x: torch.stack(x, 2).flatten(1, 2), {"parts": "2"}, TWO, made=KEPT),
]


@pytest.mark.parametrize(("threads", "width"), WAYS)
def test_light_kernels_equal_pytorch(threads: int, width: int) -> None:
    functions, code = [], {}
    for i, case in enumerate(CASES):
        functions.append(build_kernel(address_of(case, width), target(threads)))
        code[f"kernel_{i}"] = functions[-1].code.with_attr("global_symbol", f"kernel_{i}")
    library = tvm.compile(tvm.IRModule(code), target=target(threads).tvm).jit()
    found = []
    for i, (case, function) in enumerate(zip(CASES, functions, strict=True)):
        images = images_of(case, width)
        read = [] if case.name == "quantize" else [KEPT, KEPT if case.name == "interleave" else READ[1]][: len(images)]
        real = (
            [s.scale * (x.astype("f8") - s.zero_point) for x, s in zip(images, read, strict=True)] if read else images
        )
        is_float = address_of(case, width).key.types.made == "float32"
        made = None if is_float else case.made
        expected = case.operator(*[torch.from_numpy(np.asarray(x, "f8")) for x in real]).numpy()
        order = (0, 1, 2, 3) if case.attributes.get("layout") == "nchw" else (0, 2, 3, 1)
        tensors = [image.transpose(order) for image in images]
        if case.name == "scale_channels" or "nc" in case.attributes.get("reads", ()):
            tensors[1] = tensors[1][:, :1, :1]
        assert function.quantized is not None
        factor, summand = factors(sum(image.shape[1] for image in images))
        model = Quantized(tuple(read), made, weight_scales=factor, bias=summand)
        arrays = [*tensors, *function.quantized(model)]
        result, is_beside = called(library[f"kernel_{i}"], arrays, function.output_shape, function.output_type)
        if is_beside:
            found.append(f"{case.name} {width} writes beside its output")
        if said := wrong(result.transpose(0, 3, 1, 2), expected, made):
            found.append(f"{case.name} {case.attributes} {case.precision} {width} {said}")
    assert found == []


def images_of(case: Case, width: int) -> list[np.ndarray]:
    random = np.random.default_rng(width)
    shapes = [(BATCH, channels, HEIGHT, WIDTH) for channels in case.widths(width)]
    if case.name == "quantize":
        return [(6 * random.standard_normal(shape)).astype("float32") for shape in shapes]
    return [random.integers(0, 256, shape, np.uint8) for shape in shapes]


def address_of(case: Case, width: int) -> Address:
    read = sum(case.widths(width)) if case.name in ("concat", "interleave") else case.widths(width)[0]
    made = {"channel_slice": read // 2, "flatten": read * HEIGHT * WIDTH, "pad_channels": read + 8}.get(case.name, read)
    key = KernelKey.make(case.name, (HEIGHT, WIDTH), BATCH, **case.attributes)
    return Address(key.at_precision(case.precision), (read, made))


def test_every_light_kernel_of_bytes_is_tried_here() -> None:
    with_weights = {"conv2d", "depthwise_conv2d", "linear", "conv_transpose2d"}
    # The same code as for float32, without a look at any value; and what is below.
    elsewhere = {"to_nhwc", "to_nchw", "strided_copy", "reduce"}
    assert {case.name for case in CASES} == QUANTIZED.keys() - with_weights - elsewhere


def test_what_moves_bytes_makes_no_real_numbers() -> None:
    key = KernelKey.make("flatten", (2, 2), 1).at_precision(INT8_FLOAT32)
    with pytest.raises(UserError, match="compute what it moves"):
        build_kernel(Address(key, (3, 12)), target())


@pytest.mark.parametrize("precision", [INT8, INT8_FLOAT32])
def test_reductions_equal_pytorch(precision: str) -> None:
    shapes, random = ((3, 70, 1), (2, 5, 37), (1, 300, 16)), np.random.default_rng(5)
    kinds = {"sum": torch.sum, "mean": torch.mean, "amax": torch.amax, "amin": torch.amin}
    tried = [(kind, shape, steps) for kind in kinds for shape in shapes for steps in ((), ("relu",), ("sigmoid",))]
    functions, code = [], {}
    for i, (kind, shape, steps) in enumerate(tried):
        key = KernelKey.make("reduce", (), 1, of=kind, shape=",".join(map(str, shape)), epilogue=steps)
        functions.append(build_kernel(Address(key.at_precision(precision), (1, 1)), target(1)))
        code[f"kernel_{i}"] = functions[-1].code.with_attr("global_symbol", f"kernel_{i}")
    library, found = tvm.compile(tvm.IRModule(code), target=target(1).tvm).jit(), []
    for i, ((kind, shape, steps), function) in enumerate(zip(tried, functions, strict=True)):
        image = random.integers(0, 256, shape, np.uint8)
        expected = kinds[kind](torch.from_numpy(READ[0].scale * (image.astype("f8") - READ[0].zero_point)), 1)
        for step in steps:
            expected = getattr(torch, step)(expected)
        made = None if precision == INT8_FLOAT32 else Scale(0.01 + float(expected.std()) / 30, 90)
        assert function.quantized is not None
        arrays = [image, *function.quantized(Quantized((READ[0],), made))]
        result, is_beside = called(library[f"kernel_{i}"], arrays, function.output_shape, function.output_type)
        if is_beside or (said := wrong(result, expected.numpy(), made)):
            found.append(f"{kind} {shape} {steps} {'writes beside its output' if is_beside else said}")
    assert found == []
