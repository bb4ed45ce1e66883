"""Light kernels (pooling, element-wise steps, changes of shape) and what PyTorch's operators for them are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from aap_hw.compile.families import FAMILIES
from aap_hw.compile.families.slow import LIBRARIES

BATCH, HEIGHT, WIDTH = 2, 6, 9
# Those with a file of tests of their own.
ELSEWHERE = {"attention", "axis_softmax", "matmul", "reduce", "gather", "grid_sample", "resize", "strided_copy"}
ELSEWHERE |= {"argsort", "cumsum", "take_along"}
# Of bytes only.
BYTES = {"quantize", "dequantize"}
LIGHT_KERNELS = {op for op, family in FAMILIES.items() if family.weight is None} - {*LIBRARIES} - ELSEWHERE - BYTES


@dataclass(frozen=True)
class Case:
    """A light kernel, the attributes of its key, and what it does to images (N, C, H, W)."""

    name: str
    operator: Callable[..., torch.Tensor]
    attributes: dict[str, Any] = field(default_factory=dict)
    inputs: int = 1

    def __str__(self) -> str:
        return "-".join([self.name, *(str(value) for value in self.attributes.values())])


def windows(kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], **more: str) -> dict[str, Any]:
    return {"kernel": kernel, "stride": stride, "padding": padding, **more}


def borders(before: tuple[int, int], behind: tuple[int, int] | str = "", **more: object) -> dict[str, Any]:
    return {"padding": before, "padding_end": behind, **more}


CASES = [
    Case("max_pool2d", lambda x: F.max_pool2d(x, 2), windows((2, 2), (2, 2), (0, 0))),
    Case("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 1), windows((3, 3), (2, 2), (1, 1))),
    Case("max_pool2d", lambda x: F.max_pool2d(x, (2, 3), (1, 2), (1, 0)), windows((2, 3), (1, 2), (1, 0))),
    Case("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), windows((3, 3), (2, 2), (0, 0), ceil="1")),
    Case("max_pool2d", lambda x: F.max_pool2d(x, 2, 2, 1, 1, True), windows((2, 2), (2, 2), (1, 1), ceil="1")),
    Case("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 1, 2), windows((3, 3), (2, 2), (1, 1)) | {"dilation": (2, 2)}),
    Case("avg_pool2d", lambda x: F.avg_pool2d(x, 2), windows((2, 2), (2, 2), (0, 0))),
    Case("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 1, 1), windows((3, 3), (1, 1), (1, 1))),
    Case("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 2, 1, True), windows((3, 3), (2, 2), (1, 1), ceil="1")),
    Case(
        "avg_pool2d",
        lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
        windows((3, 3), (2, 2), (1, 1), ceil="1", padding_counts="no"),
    ),
    Case(
        "sum_pool2d",
        lambda x: F.avg_pool2d(x, 3, 2, 1, True, divisor_override=5),
        windows((3, 3), (2, 2), (1, 1), ceil="1", divisor=5),
    ),
    Case("sum_pool2d", lambda x: F.avg_pool2d(x, 2, divisor_override=3), windows((2, 2), (2, 2), (0, 0), divisor=3)),
    Case("global_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 1)),
    Case("relu", F.relu),
    Case("relu6", F.relu6),
    Case("silu", F.silu),
    Case("sigmoid", torch.sigmoid),
    Case("hardsigmoid", F.hardsigmoid),
    Case("hardswish", F.hardswish),
    Case("cast", lambda x: x),
    Case("add", torch.add, inputs=2),
    Case("add", lambda x, y: F.relu(x + y), {"epilogue": ("relu",)}, inputs=2),
    Case("mul", torch.mul, inputs=2),
    Case("elementwise", lambda x: F.gelu(x), {"expr": "gelu(x0)", "reads": ("nyxc",)}),
    Case("elementwise", lambda x, y: torch.tanh(x - y), {"expr": "tanh(sub(x0,x1))", "reads": ("nyxc", "nyxc")}, 2),
    Case("subsample", lambda x: x[:, :, ::2, ::2], {"stride": (2, 2)}),
    Case("subsample", lambda x: x[:, :, :, ::3], {"stride": (1, 3)}),
    Case("pad_channels", lambda x: F.pad(x, (0, 0, 0, 0, 3, 5)), {"before": 3, "after": 5}),
    Case("pad_channels", lambda x: F.pad(x, (0, 0, 0, 0, 4, 4)), {"side": "middle"}),
    Case("pad_channels", lambda x: F.pad(x, (0, 0, 0, 0, 0, 8)), {"side": "first"}),
    Case("pad_channels", lambda x: F.pad(x, (0, 0, 0, 0, 5, 0)), {"side": "last"}),
    Case("pad", lambda x: F.pad(x, (2, 0, 1, 3), value=-0.5), borders((1, 2), (3, 0), value=-0.5)),
    Case("pad", lambda x: F.pad(x, (2, 2, 0, 0)), borders((0, 2))),
    Case("pad", lambda x: F.pad(x, (3, 8, 5, 1), "reflect"), borders((5, 3), (1, 8), mode="reflect")),
    Case("pad", lambda x: F.pad(x, (3, 3, 9, 9), "replicate"), borders((9, 3), mode="replicate")),
    Case("pad", lambda x: F.pad(x, (9, 1, 0, 6), "circular"), borders((0, 9), (6, 1), mode="circular")),
    Case("channel_slice", lambda x: x[:, : -(-x.shape[1] // 3)], {"side": "first"}),
    Case("channel_slice", lambda x: x[:, x.shape[1] // 3 :], {"side": "last"}),
    Case("interleave", lambda x, y: torch.stack([x, y], 2).flatten(1, 2), {"parts": 2}, inputs=2),
    Case("interleave", lambda *x: torch.stack(x, 2).flatten(1, 2), {"parts": 3}, inputs=3),
    Case("flatten", lambda x: x.flatten(1)[:, :, None, None]),
    Case("to_nhwc", lambda x: x),
    Case("to_nchw", lambda x: x),
]


def random_images(count: int, channels: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [4 * torch.randn(BATCH, channels, HEIGHT, WIDTH, generator=generator) for _ in range(count)]


def nhwc(image: torch.Tensor) -> torch.Tensor:
    return image.permute(0, 2, 3, 1)
