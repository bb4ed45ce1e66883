"""Proves that padding of every kind equals PyTorch's, and that zeros in front of a convolution are part of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.target import device_target
from aap_hw.graph import ChannelGraph
from tests.compile.random_kernels import wrong_kernels
from tests.compile.running import OneSided, assert_compiled_equals_pytorch, randomise

CASES = [
    OneSided(17, 37, padding=(0, 2), ends=(1, 0), epilogue=("bias", "add", "relu"), batch=2),
    OneSided(64, 48, (12, 13), padding=(2, 0), ends=(0, 1)),  # as Winograd would
    OneSided(64, 48, (1, 50), (1, 3), padding=(0, 8), ends=(0, 0), dilation=(1, 4)),
    OneSided(13, 24, (8, 8), stride=(2, 2), padding=(0, 0), ends=(1, 1), pitched=("input", "output")),
    OneSided(3, 16, (9, 8), stride=(2, 2), padding=(0, 0), ends=(1, 1), planar=True),
    OneSided(24, 24, (8, 9), stride=(2, 2), padding=(0, 0), ends=(1, 1), depthwise=True),
    OneSided(17, 17, (7, 8), (4, 2), padding=(3, 0), ends=(0, 3), depthwise=True, planar=True),
]


def test_convolutions_padded_on_one_side_equal_pytorch() -> None:
    assert wrong_kernels(CASES) == []


def test_a_gpu_pads_on_the_same_sides() -> None:
    assert wrong_kernels(CASES, device_target({"kind": "cuda", "arch": "sm_80"}, 1)) == []


class Whole(nn.Module):
    def __init__(self, function: Callable[[Whole, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        self.even, self.same = nn.Conv2d(5, 5, 4, padding="same"), nn.Conv2d(5, 6, 3, padding="same", dilation=2)
        self.mirrored = nn.Conv2d(5, 4, 3, padding=1, padding_mode="reflect", stride=2)
        self.ring = nn.Conv1d(15, 4, 4, padding=2, padding_mode="circular")
        self.causal = nn.utils.parametrizations.weight_norm(nn.Conv1d(15, 15, 3, dilation=2))
        self.clip, self.linear = nn.Conv3d(3, 4, 2, padding="same"), nn.Linear(8, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def in_front_of_an_overwrite(m: Whole, x: Tensor) -> Tensor:
    """What is padded is overwritten before a convolution and a pool read the padded image."""
    padded = F.pad(x, (1, 1, 2, 0))
    return m.conv(padded) + F.max_pool2d(padded, 3, 1)[:, :1] + x.relu_().mean()


FUNCTIONS: list[tuple[Callable[[Whole, Tensor], Tensor], list[str]]] = [
    # Zeros in front of a convolution are part of it, once for each that reads them, and with its own.
    (
        lambda m, x: F.relu(m.norm(m.conv(F.pad(x, (0, 1, 0, 1))))),
        ["conv2d padding=0x0 padding_end=1x1", "to_nchw"],
    ),
    (lambda m, x: m.conv(F.pad(x, (1, 1, 1, 1))), ["conv2d padding=1x1", "to_nchw"]),
    (
        lambda m, x: m.even(m.same(F.pad(m.conv(x), (0, 2)))[:, 1:]),
        [
            "conv2d padding=0x0",
            "conv2d padding=2x2 padding_end=2x4",
            "channel_slice",
            "conv2d padding=1x1 padding_end=2x2",
            "to_nchw",
        ],
    ),
    (
        lambda m, x: (lambda p: m.causal(p) + m.causal(p)[..., :1])(F.pad(x.flatten(1, 2), (4, 0))),
        [],
    ),
    (
        lambda m, x: m.mirrored(m.conv(x)),
        ["conv2d padding=0x0", "pad padding=1x1", "conv2d padding=0x0", "to_nchw"],
    ),
    (lambda m, x: m.ring(x.flatten(1, 2)), []),
    (lambda m, x: F.pad(m.conv(x), (1, 0, 2, 3), "replicate"), []),
    (lambda m, x: F.pad(m.conv(x), (1, 0), value=2.0), []),
    (lambda m, x: m.linear(F.pad(x.flatten(2).transpose(1, 2), (0, 0, 3, 1)).transpose(1, 2)[..., :8]), []),
    # What no width cuts is padded along any axis.
    (lambda m, x: F.pad(F.pad(x.flatten(2), (2, 1)).transpose(0, 1).flatten(1), (0, 3), value=1.0), []),
    (lambda m, x: F.pad(x.softmax(3).reshape(2, 3, 5, 7).flatten(0, 1), (1, 0, 2, 1), "reflect"), []),
    (lambda m, x: F.pad(m.conv(x).permute(0, 2, 3, 1), (0, 0, 1, 2, 0, 1)), []),
    (lambda m, x: m.clip(F.pad(torch.stack([x, x + 1], 2), (0, 0, 0, 0, 2, 0))), []),
    (
        lambda m, x: F.pad(torch.stack([x, m.conv(F.pad(x, [1] * 4))[:, 2:]], 2), (1, 0, 0, 2, 1, 1), "replicate"),
        [],
    ),
]


class Everything(nn.Module):
    """All the functions in one network, as each library takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Whole(in_front_of_an_overwrite)

    def forward(self, x: Tensor) -> Tensor:
        made = [function(self.layers, x) for function, _ in FUNCTIONS] + [in_front_of_an_overwrite(self.layers, x + 0)]
        return torch.cat([each.reshape(1, -1) for each in made], 1)


@pytest.mark.slow
def test_padding_in_a_network_compiles_to_what_pytorch_computes(tmp_path: Path) -> None:
    model, image = randomise(Everything()), torch.randn(2, 3, 5, 7)
    slow = partition(ChannelGraph.trace(model, (image,))).slow_path
    assert "pad" not in slow
    assert "conv" not in slow
    assert_compiled_equals_pytorch(model, image, tmp_path)


@pytest.mark.parametrize(("function", "found"), [each for each in FUNCTIONS if each[1]])
def test_zeros_are_part_of_the_convolution_behind_them(
    function: Callable[[Whole, Tensor], Tensor], found: list[str]
) -> None:
    network = partition(ChannelGraph.trace(Whole(function).eval(), (torch.randn(2, 3, 5, 7),)))
    named = [(kernel.key.op, kernel.key.attributes) for kernel in network.kernels]
    assert [" ".join([op, *(f"{n}={v}" for n, v in pairs if n.startswith("padding"))]) for op, pairs in named] == found
