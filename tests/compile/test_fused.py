"""Proves that trees of element-wise operators become one kernel each, which computes what PyTorch does.

With constants and tensors that are broadcast in every way, of images and of rows, behind kernels that take them along
and behind kernels that cannot, and in networks that are cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor, nn

from aap_hw.compile.cpu import loops
from aap_hw.compile.families.slow import is_slow
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.library.build import build_kernel
from aap_hw.compile.library.lowering import compile_network
from aap_hw.graph import ChannelGraph
from tests.compile.running import assert_compiled_equals_pytorch, compiled, device, randomise, target
from tests.graph.ground_truth import random_keep

CHANNELS, SIZE = 13, (6, 7)


class Values(nn.Module):
    """An image that no kernel takes operators along behind, another, and constants of all shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, CHANNELS, 1), nn.Conv2d(3, CHANNELS, 1)
        shapes = {
            "channel": (CHANNELS, 1, 1),
            "place": (1, CHANNELS, *SIZE),
            "row": (SIZE[0], 1),
            "column": (CHANNELS, 1, SIZE[1]),
            "pixel": SIZE,
            "one": (),
            "each": (2, 1, 1, 1),
            "last": (CHANNELS,),
            "single": (1,),
            "token": (1, SIZE[0] * SIZE[1], CHANNELS),
        }
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b = (F.max_pool2d(layer(x), 3, 1, 1) for layer in (self.a, self.b))
        return tuple(case.function(self, a, b) for case in CASES)


@dataclass(frozen=True)
class Case:
    """A function of two images, and the expressions of the kernels that it becomes, with their operands' axes."""

    function: Callable[[Values, Tensor, Tensor], Tensor]
    kernels: tuple[str, ...]


def rows(image: Tensor) -> Tensor:
    return image.flatten(2).transpose(1, 2)


def shared(image: Tensor) -> Tensor:
    return F.max_pool2d(image, 1) + image * torch.sigmoid(image)


def of_one(image: Tensor) -> Tensor:
    """Three windows of the first image, two heads."""
    return rows(image[:1]).view(1, 3, 2, 7, CHANNELS)


def windows(a: Tensor, b: Tensor) -> Tensor:
    """Two images, three windows of each, 14 heads."""
    return (rows(a) @ rows(b).mT).view(2, 3, 14, 6, 7)


def beside_their_means(heads: Tensor) -> Tensor:
    return heads + heads.mean(4, keepdim=True).mean(2, keepdim=True)


CASES = [
    Case(lambda m, a, b: a + b + a, ("add(add(x0,x1),x0) nyc+nyc",)),
    Case(lambda m, a, b: F.gelu(a * b - a), ("gelu(sub(mul(x0,x1),x0)) nyc+nyc",)),
    Case(lambda m, a, b: a * m.channel + b, ("add(mul(x0,c0),x1) nyc+nyc c",)),
    Case(lambda m, a, b: (a + m.place) * 2, ("mul(add(x0,c0),2) nyc yc",)),
    Case(lambda m, a, b: a * m.row + m.column, ("add(mul(x0,c0),c1) nyxc y+xc",)),
    Case(lambda m, a, b: a * m.each - m.pixel, ("sub(mul(x0,c0),c1) nyc n+y",)),
    Case(lambda m, a, b: (rows(a) * m.last + m.token) / 2, ("mul(add(mul(x0,c0),c1),0.5) nyc c+yc",)),
    Case(lambda m, a, b: rows(a) * torch.tanh(rows(b)), ("mul(x0,tanh(x1)) nyc+nyc",)),
    Case(lambda m, a, b: a.flatten(2) * m.pixel.flatten() + 1, ("add(mul(x0,c0),1) nyc y",)),
    Case(lambda m, a, b: torch.where(a > b, m.one, b.clamp(-1, 2)), ("where(gt(x0,x1),c0,clamp(x1,-1,2)) nyc+nyc 1",)),
    Case(lambda m, a, b: ((a > 0) & (b < 0.5)).float() + a, ("add(logical_and(gt(x0,0),lt(x1,0.5)),x0) nyc+nyc",)),
    Case(lambda m, a, b: a.masked_fill(b <= 0, -1.0), ("where(le(x0,0),-1,x1) nyc+nyc",)),
    Case(lambda m, a, b: a + a * torch.sigmoid(b.mean((2, 3), keepdim=True)), ("sigmoid", "add(x0,mul(x0,x1)) nyc+nc")),
    Case(lambda m, a, b: a[:, :1].sigmoid() * b, ("sigmoid", "mul(x0,x1) ny+nyc")),
    Case(lambda m, a, b: (1 - a.mean((2, 3))) / (b.mean((2, 3)).exp() + 1), ("div(sub(1,x0),add(exp(x1),1)) nc+nc",)),
    Case(lambda m, a, b: a * F.relu6(a + 3) / 6 + F.relu(F.relu(b)), ("add(hardswish(x0),relu(x1)) nyc+nyc",)),
    Case(lambda m, a, b: (a + b).mul_(3).relu_().sub(b, alpha=2), ("sub(relu(mul(add(x0,x1),3)),mul(x1,2)) nyc+nyc",)),
    Case(lambda m, a, b: shared(a + b), ("add", "add(x0,silu(x1)) nyc+nyc")),
    Case(lambda m, a, b: torch.addcmul(m.channel, a, b, value=2), ("add(c0,mul(mul(x0,x1),2)) nyc+nyc c",)),
    Case(lambda m, a, b: F.prelu(a, m.last) - b, ("sub(leaky_relu(x0,c0),x1) nyc+nyc c",)),
    Case(lambda m, a, b: F.prelu(b, m.single) * a, ("mul(leaky_relu(x0,c0),x1) nyc+nyc 1",)),
    Case(lambda m, a, b: of_one(a) + m.token[:, :21].view(1, 3, 1, 7, CHANNELS), ("add(x0,c0) yxc yc",)),
    Case(lambda m, a, b: of_one(a) + m.token[:, :21, :1].view(1, 3, 1, 7, 1), ("add(x0,c0) nyxc nx",)),
    Case(lambda m, a, b: windows(a, b) + m.place[:, :3].unsqueeze(2), ("add(x0,c0) nyxc yc",)),
    Case(lambda m, a, b: beside_their_means(windows(a, b)), ("add(x0,x1) nyxc+nx",)),
    Case(
        lambda m, a, b: torch.atanh(a * 0.1) + b,
        ("add(mul(sub(log1p(mul(x0,0.1)),log1p(neg(mul(x0,0.1)))),0.5),x1) nyc+nyc",),
    ),
    Case(
        lambda m, a, b: a.sigmoid().logit(0.1) + b,
        ("log(div(clamp(sigmoid(x0),0.1,0.9),sub(1,clamp(sigmoid(x0),0.1,0.9)))) nyc", "add"),
    ),
    Case(
        lambda m, a, b: (b / a.relu()).nan_to_num(1, 2).clamp(-3, 3),
        (
            "clamp(where(isnan(div(x0,relu(x1))),1,where(eq(div(x0,relu(x1)),1e999),2,"
            "clamp(div(x0,relu(x1)),-3.40282347e38,3.40282347e38))),-3,3) nyc+nyc",
        ),
    ),
    Case(lambda m, a, b: ((a > 0) ^ (b > 0)) * a, ("mul(ne(gt(x0,0),gt(x1,0)),x0) nyc+nyc",)),
    Case(lambda m, a, b: a * 1 + b * 0.5 * 2, ("add(x0,mul(mul(x1,0.5),2)) nyc+nyc",)),
]  # fmt: skip


def kernels_of(model: Values) -> list[list[str]]:
    """For each output the element-wise kernels of its own that it is made by."""
    network = partition(ChannelGraph.trace(model, (torch.randn(2, 3, *SIZE),)))
    assert not any(is_slow(kernel.key) for kernel in network.kernels)
    makers = {kernel.name: kernel for kernel in network.kernels}

    def below(value: str) -> list[str]:
        kernel = makers.get(value)
        if kernel is None or kernel.key.op == "conv2d":
            return []
        texts = list(dict.fromkeys(text for name in kernel.inputs for text in below(name)))
        if kernel.key.op == "elementwise":
            attributes = (kernel.key.attribute(name) for name in ("expr", "reads", "constants", "order"))
            return [*texts, " ".join(filter(None, attributes))]
        return [*texts, kernel.key.op] if kernel.key.op in ("sigmoid", "add", "mul") else texts

    return [below(output.name) for output in network.outputs]


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_each_tree_is_one_kernel_that_computes_what_pytorch_does(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "WORTH_SHARING", 1)
    torch.manual_seed(0)
    model, image = Values().eval(), torch.randn(2, 3, *SIZE)
    if threads == 1:
        assert kernels_of(model) == [list(case.kernels) for case in CASES]
    compile_network(model, image, target(threads), tmp_path / "values.so")
    loaded = device(threads).load(tmp_path / "values.so")
    loaded.set_inputs("main", [image.numpy()])
    with torch.no_grad():
        expected = model.double()(image.double())
    for case, actual, wanted in zip(CASES, loaded.run("main"), expected, strict=True):
        np.testing.assert_allclose(actual, wanted.numpy(), rtol=1e-5, atol=1e-5, err_msg=str(case.kernels))


class Scaled(nn.Module):
    """A block of ConvNeXt, and a normalised convolution with a factor, both added to what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = (
            nn.Conv2d(3, CHANNELS, 1),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
        )
        self.wide, self.narrow = nn.Linear(CHANNELS, 29), nn.Linear(29, CHANNELS)
        self.last, self.norm, self.drop = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS), nn.Dropout()
        self.one, self.two = nn.Parameter(torch.randn(CHANNELS)), nn.Parameter(torch.randn(CHANNELS, 1, 1))
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rows = self.wide(self.depthwise(x).permute(0, 2, 3, 1))
        x = x + self.narrow(F.gelu(rows)).permute(0, 3, 1, 2).mul(self.one.reshape(1, -1, 1, 1))
        x = self.two * self.drop(self.norm(self.last(x))) + x
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def test_factors_and_shortcuts_are_part_of_the_weights_before_them_also_in_a_cut_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, image = randomise(Scaled()), torch.randn(2, 3, *SIZE)
    graph = ChannelGraph.trace(model, (image,))
    network = partition(graph)
    epilogues = ["bias", "bias", "bias+gelu", "bias+add", "bias+add", "", "bias"]
    assert [kernel.key.attribute("epilogue") for kernel in network.kernels] == epilogues
    learned = sum(parameter.numel() for parameter in model.parameters())
    assert sum(kernel.parameters(network.dense) for kernel in network.kernels) == learned
    keep = random_keep(graph, seed=1)
    widths = network.dense | {group: len(kept) for group, kept in keep.items()}
    cut = graph.cut(model, keep)
    again = partition(ChannelGraph.trace(cut, (image,)))
    assert [kernel.at(widths) for kernel in network.kernels] == [kernel.at(again.dense) for kernel in again.kernels]
    assert widths != network.dense
    assert_compiled_equals_pytorch(cut, image, tmp_path)


def test_values_may_be_cut_along_another_axis_than_the_last() -> None:
    reads = {"reads": ("nyxc", "nc"), "constants": ("yx",), "order": "ncyx"}
    key = KernelKey.make("elementwise", SIZE, 2, expr="sub(mul(x0,c0),x1)", **reads)
    function = build_kernel(Address(key, (CHANNELS, CHANNELS)), target())
    shapes = [(2, CHANNELS, *SIZE), (2, CHANNELS, 1, 1), (1, 1, *SIZE)]
    assert [argument.shape for argument in function.arguments] == shapes
    a, b, c = arrays = [np.random.default_rng(0).standard_normal(shape).astype("float32") for shape in shapes]
    made = tvm.runtime.tensor(np.full(shapes[0], np.nan, "float32"))
    compiled([function])[0](*map(tvm.runtime.tensor, arrays), made)
    np.testing.assert_allclose(made.numpy(), a * c - b, rtol=1e-6, atol=1e-6)
