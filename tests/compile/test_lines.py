"""Proves that networks of (N, C, L), images of one row, compile to what PyTorch computes, with no slow kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import device_target
from aap_hw.compile.library.build import build_kernel
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from tests.compile.running import Convolution, assert_compiled_equals_pytorch, call, randomise, target
from tests.graph.ground_truth import random_keep


class Line(nn.Module):
    """Every kind of layer that there is for lines."""

    def __init__(self, read: int = 5) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(read, 12, 8, 2, 3), nn.BatchNorm1d(12)
        self.each, self.grouped = nn.Conv1d(12, 24, 5, 1, 2, groups=12), nn.Conv1d(24, 12, 3, 1, 2, 2, groups=3)
        self.longer, self.last = nn.ConvTranspose1d(12, 24, 4, 2, 1), nn.BatchNorm1d(12)
        self.judge = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.norm(self.first(x))), 3, 2, 1)
        x = F.avg_pool1d(F.glu(self.longer(self.grouped(self.each(x)) + x), 1), 2, padding=1)
        x = F.relu(self.last(F.adaptive_avg_pool1d(x, 5)))
        return torch.cat([self.judge(x.mean(2)), F.adaptive_avg_pool1d(x, 1).flatten(1), x.flatten(1)], 1)


@pytest.mark.parametrize("shape", [(2, 5, 37), (1, 1, 37)], ids=str)
def test_lines_are_images_of_one_row(shape: tuple[int, int, int], tmp_path: Path) -> None:
    model, lines = randomise(Line(shape[1])), torch.randn(shape)
    network = partition(ChannelGraph.trace(model, (lines,)))
    assert network.slow_path == ""
    found = [str(kernel.key) for kernel in network.kernels]
    expected = "kernel=1x8 padding=0x3 stride=1x2"
    assert any(f"conv2d 1x37 dilation=1x1 epilogue=bias+relu {expected}" in key for key in found)
    assert sum(key.startswith("to_nhwc") for key in found) == (shape[1] > 1)
    assert_compiled_equals_pytorch(model, lines, tmp_path)


def test_a_cut_network_of_lines_has_the_kernels_that_the_uncut_one_foretold() -> None:
    model, lines = randomise(Line()), torch.randn(2, 5, 37)
    graph = ChannelGraph.trace(model, (lines,))
    network, keep = partition(graph), random_keep(graph, seed=1)
    assert keep
    assert not network.fixed
    widths = network.dense | {group: len(kept) for group, kept in keep.items()}
    again = partition(ChannelGraph.trace(graph.cut(model, keep), (lines,)))
    assert [kernel.at(widths) for kernel in network.kernels] == [kernel.at(again.dense) for kernel in again.kernels]


CASES = [
    (Convolution(6, 18, (7, 9), stride=(2, 1), epilogue=("bias", "add", "relu"), batch=2), ()),
    (Convolution(5, 10, (6, 8), epilogue=("bias",), planar=True), ()),
    (Convolution(13, 39, (5, 6), kernel=(5, 5), padding=(2, 2), epilogue=("bias",)), ("input", "output")),
]


def kernel_of(case: Convolution, gaps: tuple[str, ...], on: object) -> KernelFunction:
    attributes = dict(case.key().attributes) | {"pitched": gaps}
    key = KernelKey.make("depthwise_conv2d", case.size, case.batch, **attributes)
    return build_kernel(Address(key, (case.width_in, case.width_out)), on)  # type: ignore[arg-type]


@pytest.mark.parametrize(("case", "gaps"), CASES, ids=repr)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_depthwise_convolutions_that_make_several_channels_of_each_equal_pytorch(
    case: Convolution, gaps: tuple[str, ...], device: str
) -> None:
    on = target() if device == "cpu" else device_target({"kind": "cuda", "arch": "sm_80"}, 1)
    random = np.random.default_rng(0)
    image = random.standard_normal((case.batch, case.width_in, *case.size)).astype("float32")
    weight = random.standard_normal((case.width_out, 1, *case.kernel)).astype("float32")
    bias = random.standard_normal(case.width_out).astype("float32")
    tensors = (torch.from_numpy(each).double() for each in (image, weight, bias))
    expected = F.conv2d(*tensors, case.stride, case.padding, 1, case.width_in)
    residual = random.standard_normal(expected.shape).astype("float32")
    if "add" in case.epilogue:
        expected = F.relu(expected + torch.from_numpy(residual))
    actual = call(
        kernel_of(case, gaps, on),
        activation=image if case.planar else image.transpose(0, 2, 3, 1),
        residual=residual.transpose(0, 2, 3, 1),
        weight=weight,
        bias=bias,
    )[..., : case.width_out]
    assert np.abs(actual.transpose(0, 3, 1, 2) - expected.numpy()).max() < 1e-5


def test_a_depthwise_convolution_makes_as_many_channels_of_each() -> None:
    with pytest.raises(UserError, match="it makes as many of each"):
        kernel_of(Convolution(6, 13), (), target())
