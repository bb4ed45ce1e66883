"""Proves that a network compiled in int8 computes what its quantised form does in PyTorch.

Both round the same sums, and PyTorch adds up in float32 what kernels add up in whole numbers. So a value that lies
halfway between two steps may be rounded to either, which later values then inherit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.front.network import Network
from aap_hw.compile.front.quantisation import Quantisation
from aap_hw.compile.library.lowering import compile_network
from aap_hw.errors import UserError
from aap_hw.quantize import quantise, read_quantised
from tests.compile.running import device, randomise, target


class Varied(nn.Module):
    """A bit of everything that kernels in int8 do, and a softmax, which they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 20, 3, 2, 1, bias=False), nn.BatchNorm2d(20)
        self.gain = nn.Parameter(torch.linspace(0.5, 2, 20).reshape(20, 1, 1))
        self.conv, self.conv_bn = nn.Conv2d(20, 20, 3, padding=1), nn.BatchNorm2d(20)
        self.depthwise, self.grouped = nn.Conv2d(20, 20, 3, padding=1, groups=20), nn.Conv2d(20, 20, 1, groups=2)
        self.squeeze, self.excite = nn.Conv2d(20, 6, 1), nn.Conv2d(6, 20, 1)
        self.left, self.right = nn.Conv2d(10, 10, 1), nn.Conv2d(20, 12, 1)
        self.scores, self.head = nn.Conv2d(32, 4, 1), nn.Linear(33, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(F.relu(self.stem_bn(self.stem(x))), 2)
        x = F.gelu(x * self.gain + 0.1)
        x = F.relu(self.conv_bn(self.conv(x)) + x)
        y = F.hardswish(self.depthwise(x))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = F.relu6(self.grouped(y)) + x
        first, second = y.chunk(2, 1)
        y = torch.cat([first, F.relu(self.left(second))], 1)
        y = y.view(1, 2, 10, 6, 5).transpose(1, 2).reshape(1, 20, 6, 5)
        y = torch.cat([F.silu(y), F.avg_pool2d(self.right(y), 3, 1, 1)], 1)
        scores = F.softmax(self.scores(y), 1)
        y = torch.cat([y, scores.amax(1, keepdim=True)], 1)
        return self.head(y.mean((2, 3))), scores


class Attention(nn.Module):
    """Rows and lines instead of images, and a value that attention makes in another order than the program has it.

    One of its layers is written by hand, with a weight (C_in, C_out).
    """

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 5)
        self.weight, self.bias = nn.Parameter(torch.randn(16, 16) / 4), nn.Parameter(torch.randn(16))
        self.longer, self.joined = nn.ConvTranspose1d(16, 16, 4, 2, 1), nn.Conv1d(32, 16, 1)

    def forward(self, input: Tensor) -> Tensor:
        x = self.patches(input).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).reshape(1, 30, 3, 2, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 16)
        y = self.longer((x + torch.addmm(self.bias, y, self.weight).view(1, 30, 16)).transpose(1, 2))
        y = torch.cat([y, (y.var(2, keepdim=True) + 0.1).sqrt().repeat(1, 1, 60)], 1)
        return self.head(F.relu(self.joined(y)).mean(2))


class Dense(nn.Module):
    """Normalisations that no layer takes in, padding, both ways of resizing; what is grown, and reduced to a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(10)
        self.grow, self.down, self.last = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 5, 3), nn.Conv2d(5, 4, 1)
        self.up, self.up_norm = nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, bias=False), nn.BatchNorm2d(6)
        self.gate = nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.grow(F.relu(self.first(x)))], 1)
        y = F.pad(self.down(F.relu(self.second(x))), (0, 1, 2, 1))
        y = F.interpolate(F.interpolate(y, scale_factor=2.0), (15, 20), mode="bilinear")
        y = F.relu(self.up_norm(self.up(self.last(y))))
        return self.gate(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1))


def compiled_beside_reference(model: nn.Module, folder: Path) -> tuple[Network, Iterator[tuple[Tensor, Tensor]]]:
    """The network that a model is compiled to, and pairs of what that and PyTorch return."""
    torch.manual_seed(5)
    images = [torch.randn(1, 3, 24, 20) for _ in range(8)]
    reference = quantise(randomise(model), images)
    floating, quantisation = read_quantised(reference)
    network = compile_network(floating, images[0], target(), folder / "network.so", quantisation=quantisation)
    loaded = device().load(folder / "network.so")

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for image in images[:4]:
            loaded.set_inputs("main", [image.numpy()])
            expected = reference(image)
            expected = expected if isinstance(expected, tuple) else (expected,)
            yield from zip(map(torch.from_numpy, loaded.run("main")), expected, strict=True)

    return network, pairs()


def test_the_compiled_network_is_the_quantised_one(tmp_path: Path) -> None:
    network, pairs = compiled_beside_reference(Varied(), tmp_path)
    in_float32 = [kernel.key.op for kernel in network.kernels if kernel.key.precision == "float32"]
    assert in_float32 == ["axis_softmax", "reduce", "concat", "global_avg_pool2d", "to_nchw"]
    assert "elementwise" in [kernel.key.op for kernel in network.kernels if kernel.key.precision == "int8"]
    changes = Counter(kernel.key.op for kernel in network.kernels)
    assert (changes["quantize"], changes["dequantize"]) == (2, 1)
    for found, expected in pairs:
        assert expected.abs().max() > 0.1
        assert (found - expected).abs().max() < 0.02  # a few steps
        assert (found - expected).abs().median() < 1e-5


def test_a_dense_block_and_what_grows_it_are_in_int8(tmp_path: Path) -> None:
    network, pairs = compiled_beside_reference(Dense(), tmp_path)
    precisions = {kernel.key.op: kernel.key.precision for kernel in network.kernels if kernel.key.op != "conv2d"}
    assert precisions.pop("quantize") == "float32_int8"
    assert set(precisions.items()) >= {
        (op, "int8") for op in ("affine", "concat", "pad", "resize", "conv_transpose2d", "reduce")
    }
    for found, expected in pairs:
        assert expected.abs().max() > 0.1
        assert (found - expected).abs().max() < 0.03  # a step or two
        assert (found - expected).abs().median() < 1e-5


def test_layers_of_a_transformer_and_of_lines_read_bytes(tmp_path: Path) -> None:
    network, pairs = compiled_beside_reference(Attention(), tmp_path)
    weighted = [kernel.key.precision for kernel in network.kernels if kernel.weight]
    assert weighted.count("float32") == 1, weighted  # the layer norm
    for found, expected in pairs:
        assert expected.abs().max() > 0.1
        assert (found - expected).abs().max() < 0.02


def test_quantised_weights_of_a_layer_in_float32_are_rounded(tmp_path: Path) -> None:
    torch.manual_seed(6)
    images = [torch.randn(1, 3, 8, 8) for _ in range(2)]
    floating, whole = read_quantised(quantise(randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh())), images))
    network = compile_network(
        floating, images[0], target(), tmp_path / "n.so", quantisation=Quantisation({}, whole.weights)
    )
    assert {kernel.key.precision for kernel in network.kernels} == {"float32"}
    ((name, scales),) = whole.weights.items()
    weight = floating.get_parameter(name)
    steps = torch.tensor(scales).reshape(-1, 1, 1, 1)
    loaded = device().load(tmp_path / "n.so")
    loaded.set_inputs("main", [images[1].numpy()])
    with torch.no_grad():
        unrounded = floating(images[1])
        weight.copy_((weight / steps).round() * steps)
        expected = floating(images[1])
    (found,) = map(torch.from_numpy, loaded.run("main"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (unrounded - expected).abs().max() > 1e-3
    with pytest.raises(UserError, match="the weights nowhere are quantised, but the network reads none of that name"):
        compile_network(
            floating,
            images[0],
            target(),
            tmp_path / "n.so",
            quantisation=Quantisation({}, {"nowhere": scales}),
        )
