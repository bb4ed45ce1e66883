"""Proves that a network compiled in int8 computes what its quantised form does in PyTorch.

Both round the same sums, and PyTorch adds up in float32 what kernels add up in whole numbers. So a value that lies
halfway between two steps may be rounded to either, which later values then inherit.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.library.lowering import compile_network
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


def test_the_compiled_network_is_the_quantised_one(tmp_path: Path) -> None:
    model = randomise(Varied()).eval()
    images = [torch.randn(1, 3, 24, 20) for _ in range(8)]
    reference = quantise(model, images)
    floating, quantisation = read_quantised(reference)
    network = compile_network(floating, images[0], target(), tmp_path / "network.so", quantisation=quantisation)
    in_float32 = [kernel.key.op for kernel in network.kernels if kernel.key.precision == "float32"]
    assert in_float32 == ["axis_softmax", "reduce", "concat", "global_avg_pool2d", "to_nchw"]
    assert "elementwise" in [kernel.key.op for kernel in network.kernels if kernel.key.precision == "int8"]
    changes = Counter(kernel.key.op for kernel in network.kernels)
    assert (changes["quantize"], changes["dequantize"]) == (2, 1)
    loaded = device().load(tmp_path / "network.so")
    for image in images[:4]:
        loaded.set_inputs("main", [image.numpy()])
        for found, expected in zip(map(torch.from_numpy, loaded.run("main")), reference(image), strict=True):
            assert expected.abs().max() > 0.1
            assert (found - expected).abs().max() < 0.02  # a few steps
            assert (found - expected).abs().median() < 1e-5
