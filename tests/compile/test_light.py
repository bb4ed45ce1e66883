"""Proves that the light kernels (pooling, element-wise steps, changes of shape) equal PyTorch's operators.

Each at a batch of two, at widths that fill vectors and that do not, with one thread and with two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from aap_hw.compile.build import build_kernel
from aap_hw.compile.kernel import KernelKey
from aap_hw.compile.light import LIGHT_KERNELS
from aap_hw.errors import UserError
from tests.compile.running import call, target

Operator = Callable[[torch.Tensor], torch.Tensor]
BATCH, HEIGHT, WIDTH = 2, 6, 9


def pad_channels(before: int, after: int) -> Operator:
    return lambda x: F.pad(x, (0, 0, 0, 0, before, after))


# name, attributes of its key, and what it does to (N, C, H, W)
CASES: list[tuple[str, dict[str, Any], Operator]] = [
    ("max_pool2d", {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}, lambda x: F.max_pool2d(x, 2)),
    ("max_pool2d", {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}, lambda x: F.max_pool2d(x, 3, 2, 1)),
    (
        "max_pool2d",
        {"kernel": (2, 3), "stride": (1, 2), "padding": (1, 0)},
        lambda x: F.max_pool2d(x, (2, 3), (1, 2), (1, 0)),
    ),
    ("avg_pool2d", {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}, lambda x: F.avg_pool2d(x, 2)),
    ("avg_pool2d", {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)}, lambda x: F.avg_pool2d(x, 3, 1, 1)),
    ("global_avg_pool2d", {}, lambda x: F.adaptive_avg_pool2d(x, 1)),
    ("relu", {}, F.relu),
    ("relu6", {}, F.relu6),
    ("add", {}, lambda x: x + x.flip(0)),
    ("subsample", {"stride": (2, 2)}, lambda x: x[:, :, ::2, ::2]),
    ("subsample", {"stride": (1, 3)}, lambda x: x[:, :, :, ::3]),
    ("pad_channels", {"before": 3, "after": 5}, pad_channels(3, 5)),
    ("pad_channels", {"before": 0, "after": 8}, pad_channels(0, 8)),
    ("flatten", {}, lambda x: x.flatten(1)[:, :, None, None]),
    ("to_nhwc", {}, lambda x: x),
    ("to_nchw", {}, lambda x: x),
]
IDS = [f"{name}{list(attributes.values())}" for name, attributes, _ in CASES]


@pytest.mark.parametrize(("name", "attributes", "operator"), CASES, ids=IDS)
@pytest.mark.parametrize(("channels", "threads"), [(5, 1), (16, 2), (24, 1), (37, 2)])
def test_light_kernel_equals_pytorch(
    name: str, attributes: dict[str, Any], operator: Operator, channels: int, threads: int
) -> None:
    image = torch.randn(BATCH, channels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) * 4
    image -= 3 * (name == "max_pool2d")  # so that padding with zeros instead of nothing would be seen
    expected = operator(image.double())
    key = KernelKey.make(name, (HEIGHT, WIDTH), BATCH, **attributes)
    function = build_kernel(key, channels, expected.shape[1], target(threads))
    given = {"activation": image, "residual": image.flip(0)}
    laid_out = {role: tensor if name == "to_nhwc" else tensor.permute(0, 2, 3, 1) for role, tensor in given.items()}
    actual = call(function, **{role: tensor.numpy() for role, tensor in laid_out.items()})
    actual = actual if name == "to_nchw" else actual.transpose(0, 3, 1, 2)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected.numpy()).max() <= 1e-5


def test_every_light_kernel_is_tried_here() -> None:
    assert {name for name, *_ in CASES} == LIGHT_KERNELS.keys()


@pytest.mark.parametrize("name", ["relu", "add"])
def test_element_wise_kernel_of_vectors_equals_pytorch(name: str) -> None:
    random = np.random.default_rng(0)
    one, two = (random.standard_normal((2, 1, 1, 10)).astype("float32") for _ in range(2))
    actual = call(build_kernel(KernelKey.make(name, (), 2), 10, 10, target()), activation=one, residual=two)
    assert np.array_equal(actual, one + two if name == "add" else np.maximum(one, 0))


def test_key_of_another_version_is_refused() -> None:
    with pytest.raises(UserError, match="gelu 6x9 float32 batch=2 is not known to this version"):
        build_kernel(KernelKey.make("gelu", (HEIGHT, WIDTH), BATCH), 8, 8, target())
