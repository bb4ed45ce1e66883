"""Proves which operators share a kernel, which do not, and what becomes of those without a schedule.

The expected partition of the small residual network was written down by hand from its forward method.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.front.network import Network
from aap_hw.compile.front.partition import partition
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from tests.compile.running import assert_compiled_equals_pytorch, randomise


def partitioned(model: nn.Module, image: Tensor) -> Network:
    return partition(ChannelGraph.trace(model, (image,)))


class SmallResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16)
        self.conv3, self.bn3 = nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.conv4 = nn.Conv2d(8, 5, 3)
        self.relu = nn.ReLU(inplace=True)
        self.relu6 = nn.ReLU6()
        self.drop = nn.Dropout()
        self.linear, self.linear_bn = nn.Linear(5, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu6(self.stem_bn(self.stem(x)))
        out = self.relu6(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x
        out = F.max_pool2d(self.relu(out), 2)
        out = self.conv4(out)
        out = F.relu(out) + out
        out = F.adaptive_avg_pool2d(out, 1).flatten(1)
        return self.linear_bn(self.linear(self.drop(out)))


def test_small_residual_network_is_fused_as_by_hand(tmp_path: Path) -> None:
    model, image = randomise(SmallResidualNet()), torch.randn(2, 3, 20, 16)
    network = partitioned(model, image)
    names = [kernel.name for kernel in network.kernels]
    found = [
        (
            kernel.key.op,
            "+".join(kernel.key.epilogue),
            [names.index(name) if name in names else "image" for name in kernel.inputs],
            kernel.width_in.at(network.dense),
            kernel.width_out.at(network.dense),
            kernel.normalization is not None,
        )
        for kernel in network.kernels
    ]
    assert found == [
        ("conv2d", "bias+relu6", ["image"], 3, 8, True),
        ("conv2d", "bias+relu6", [0], 8, 16, True),
        ("depthwise_conv2d", "bias+relu", [1], 16, 16, True),
        ("conv2d", "bias+add+relu", [2, 0], 16, 8, True),
        ("max_pool2d", "", [3], 8, 8, False),
        ("conv2d", "bias+add(relu(x),x)", [4], 8, 5, False),
        ("global_avg_pool2d", "", [5], 5, 5, False),
        ("linear", "bias", [6], 5, 6, True),
    ]
    assert [kernel.key.attribute("layout") for kernel in network.kernels[:2]] == ["nchw", ""]
    assert all(kernel.key.batch == 2 for kernel in network.kernels)
    assert_compiled_equals_pytorch(model, image, tmp_path)


def test_sum_of_two_convolutions_is_one_kernel_behind_both(tmp_path: Path) -> None:
    class TwoBranches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
            self.bn = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.a(x) + self.bn(self.b(x)))

    model, image = randomise(TwoBranches()), torch.randn(1, 3, 6, 6)
    network = partitioned(model, image)
    found = [(kernel.key.op, "+".join(kernel.key.epilogue)) for kernel in network.kernels]
    assert found == [("conv2d", "bias"), ("conv2d", "bias+add+relu"), ("to_nchw", "")]
    assert network.kernels[1].inputs[1] == network.kernels[0].name
    assert_compiled_equals_pytorch(model, image, tmp_path)


class Whole(nn.Module):
    """A convolution, a function of its output and of the input, and nothing else."""

    def __init__(self, function: Callable[[Whole, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.linear = nn.Linear(3, 4)
        self.table = nn.Parameter(torch.randn(1, 3, 8, 8))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


SHORT = [
    (lambda m, x: x + m.conv(x), ["to_nhwc", "conv2d", "to_nchw"]),
    (lambda m, x: F.max_pool2d(x, 2) + F.max_pool2d(m.conv(x), 2), None),
    (lambda m, x: m.linear(x.mean((2, 3))), ["to_nhwc", "global_avg_pool2d", "linear"]),
    (lambda m, x: F.avg_pool2d(m.conv(x), 2).flatten(1), None),
    (lambda m, x: m.conv(x)[:, :, ::2, 0::4], ["conv2d", "subsample", "to_nchw"]),
    (lambda m, x: F.pad(m.conv(x), (0, 0, 0, 0, 1, 2)), ["conv2d", "pad_channels", "to_nchw"]),
    (lambda m, x: F.relu6(m.conv(x).clone().contiguous()), ["conv2d", "to_nchw"]),
    (lambda m, x: F.silu(m.conv(x)), ["conv2d", "to_nchw"]),
    (lambda m, x: F.relu(m.conv(x) * m.conv(x).mean((2, 3), keepdim=True)), None),
    (lambda m, x: F.max_pool2d(m.conv(x), 3, 2, ceil_mode=True), ["conv2d", "max_pool2d", "to_nchw"]),
    (lambda m, x: torch.cat([m.conv(x), x, F.relu(x)], 1), ["to_nhwc", "conv2d", "relu", "concat", "to_nchw"]),
    (lambda m, x: m.conv(x).chunk(3, 1)[0] + torch.cat([m.conv(x), x], 1).split([2, 1, 3], 1)[1] * x[:, 2:], None),
]
# Whose operators are tried in files of their own.
SLOW = [
    (lambda m, x: m.conv(F.relu(x)), ["to_nhwc", "relu", "conv2d", "to_nchw"]),
    (lambda m, x: m.conv(F.max_pool2d(x, 3, 2, 1)), ["to_nhwc", "max_pool2d", "conv2d", "to_nchw"]),
    (lambda m, x: F.avg_pool2d(m.conv(x), 2, count_include_pad=False), None),
    (lambda m, x: F.adaptive_avg_pool2d(m.conv(x), 1), ["conv2d", "global_avg_pool2d"]),
    (lambda m, x: F.adaptive_avg_pool2d(m.conv(x), 8), ["conv2d", "to_nchw"]),
    (lambda m, x: m.conv(m.conv(x)), ["conv2d", "conv2d", "to_nchw"]),
    (lambda m, x: F.hardtanh(m.conv(x).float(), 0, 6), ["conv2d", "to_nchw"]),
    (lambda m, x: m.conv(x) * x, ["to_nhwc", "conv2d", "mul", "to_nchw"]),
    (lambda m, x: F.hardswish(torch.sigmoid(F.adaptive_avg_pool2d(x, 1)) * m.conv(x)), None),
    (lambda m, x: F.avg_pool2d(m.conv(x), 3, 2, 1, True, False), ["conv2d", "avg_pool2d", "to_nchw"]),
    (lambda m, x: F.adaptive_avg_pool2d(m.conv(x), (4, 2)), ["conv2d", "avg_pool2d", "to_nchw"]),
    (lambda m, x: F.relu(torch.cat([m.conv(x), x[:, :1]], 1)), None),
    (lambda m, x: m.linear(x.mean((2, 3))).softmax(-1), ["to_nhwc", "global_avg_pool2d", "linear", "softmax"]),
    (lambda m, x: m.linear(torch.cat([x.mean((2, 3))[:, :1], x.mean((2, 3))[:, 1:]], 1)), None),
]


@pytest.mark.parametrize(
    ("function", "operators"), [*SHORT, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_short_network_compiles_to_what_pytorch_computes(
    function: Callable[[Whole, Tensor], Tensor], operators: list[str] | None, tmp_path: Path
) -> None:
    model, image = Whole(function), torch.randn(1, 3, 8, 8)
    if operators is not None:
        assert [kernel.key.op for kernel in partitioned(model, image).kernels] == operators
    assert_compiled_equals_pytorch(model, image, tmp_path)


class Conditioned(nn.Module):
    """What no kernel of images makes lies in PyTorch's order: sums of maps and a value a channel, then activations."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(6, 16)
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        step = self.step(image[:, 0, 0])
        x = F.relu(self.first(image) + step[:, :, None, None])
        lines = torch.sigmoid(x.mean(3) + step[:, :, None])
        return self.last(F.silu(x + lines[..., None]) + lines[..., None])  # type: ignore[no-any-return]


def test_kernels_of_a_cut_network_are_those_of_the_whole_one_where_images_lie_as_in_pytorch(tmp_path: Path) -> None:
    model, image = Conditioned().eval(), torch.randn(1, 3, 4, 6)
    graph = ChannelGraph.trace(model, (image,))
    cut = graph.cut(model, {"step": range(5)})
    assert [kernel.key for kernel in partitioned(cut, image).kernels] == [
        kernel.key for kernel in partition(graph).kernels
    ]
    assert_compiled_equals_pytorch(cut, image, tmp_path)


class Normalised(nn.Module):
    """Batch norms that no convolution can take along: behind a pool, a concatenation and a second reader."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.first, self.joint, self.last = nn.BatchNorm2d(3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.max_pool2d(x, 2)))
        return self.last(F.relu(self.joint(torch.cat([x, self.conv(x)], 1))))


def test_batch_norm_without_a_convolution_is_a_kernel_or_part_of_a_concatenation(tmp_path: Path) -> None:
    model, image = randomise(Normalised()), torch.randn(2, 3, 8, 6)
    found = [(kernel.key.op, "+".join(kernel.key.epilogue)) for kernel in partitioned(model, image).kernels]
    assert found[2:-1] == [("affine", "relu"), ("conv2d", "bias"), ("concat", "affine+relu"), ("affine", "")]
    assert_compiled_equals_pytorch(model, image, tmp_path)


@pytest.mark.parametrize(("parts", "found"), [(2, ["interleave"]), (4, ["concat", "channel_shuffle"])])
def test_shuffle_behind_a_concatenation_of_as_many_parts_is_one_kernel(
    parts: int, found: list[str], tmp_path: Path
) -> None:
    class Shuffled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n, _, h, w = x.shape
            x = torch.cat([x] * parts, 1)
            return x.view(n, 2, -1, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)

    image = torch.randn(2, 3, 5, 4)
    assert [kernel.key.op for kernel in partitioned(Shuffled(), image).kernels[1:-1]] == found
    assert_compiled_equals_pytorch(Shuffled(), image, tmp_path)


def test_network_of_vectors_compiles_to_what_pytorch_computes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(7, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 5))
    assert_compiled_equals_pytorch(randomise(model), torch.randn(2, 7), tmp_path)


def test_depthwise_first_layer_compiles_to_what_pytorch_computes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1, groups=3), nn.BatchNorm2d(3), nn.ReLU6(), nn.Conv2d(3, 9, 1))
    assert_compiled_equals_pytorch(randomise(model), torch.randn(2, 3, 9, 11), tmp_path)


@pytest.mark.parametrize(
    ("function", "slow"),
    [
        (lambda m, x: torch.atan(m.conv(x)), "1 atan"),
        (lambda m, x: m.conv(x) * x[:, :1], ""),
        (lambda m, x: m.conv(x) + x.mean((2, 3), keepdim=True), ""),
        (lambda m, x: torch.add(m.conv(x), x, alpha=2), ""),
        (lambda m, x: m.conv(x) + m.table, ""),
        (lambda m, x: m.conv(x) + x[:, 1:2], ""),
        (lambda m, x: torch.pow(m.conv(x), x), ""),
        (lambda m, x: torch.div(m.conv(x), 2, rounding_mode="floor"), ""),
        (lambda m, x: torch.cumprod(m.conv(x), 2), "1 cumprod"),
        (lambda m, x: m.conv(x) * x.permute(0, 1, 3, 2).contiguous(), ""),
        (lambda m, x: m.conv(x).chunk(2, 2)[1], ""),
        (lambda m, x: torch.cat([m.conv(x), x], 2), ""),
        (lambda m, x: m.conv(x).softmax(1), ""),
        (lambda m, x: m.linear(x.mean((2, 3))).softmax(0), ""),
        (lambda m, x: m.conv(x)[:, :, 1::2], ""),
        (lambda m, x: F.avg_pool2d(m.conv(x), 3, divisor_override=2), ""),
        (lambda m, x: m.conv(x).mean(1), ""),
        (lambda m, x: F.pad(m.conv(x), (1, 1, 1, 1)), ""),
        (lambda m, x: F.pad(m.conv(x), (0, 0, 0, 0, 1, 1), value=1.0), "1 pad"),
        (lambda m, x: F.conv2d(x, x[:, :, :3, :3]), ""),
        (lambda m, x: F.conv2d(x, F.max_pool2d(x, 2)), ""),
        (lambda m, x: F.conv2d(x, m.conv.weight, padding="same"), ""),
        (lambda m, x: m.conv(x).chunk(3, 1)[1], ""),
        (lambda m, x: m.conv(x).flatten(2), ""),
        (lambda m, x: m.conv(x) + torch.zeros_like(x), ""),
        (lambda m, x: F.relu(torch.zeros_like(x) + m.conv(x)), ""),
        (lambda m, x: m.conv(x) + x.new_ones(x.shape), ""),
        (lambda m, x: m.linear(m.conv(x).permute(0, 2, 3, 1)), ""),
        (lambda m, x: m.linear(m.conv(x).flatten(2).transpose(1, 2)).softmax(-1), ""),
        (lambda m, x: F.conv2d(x, m.conv.weight * 2), ""),
        (lambda m, x: torch.round(m.conv(x), decimals=-1), "1 round"),
        (lambda m, x: m.conv(x).var(1, correction=0.5), "1 var"),
        (lambda m, x: (m.conv(x) > 0).cumsum(1, dtype=torch.float32), ""),
        (lambda m, x: torch.ops.aten.slice(m.conv(x)[:, :, ::2], 1, 0, 3)[..., ::2], ""),
        (lambda m, x: m.conv(x) + (torch.zeros_like(x) + 1.5), ""),
        (lambda m, x: torch.cat([m.conv(x), torch.zeros_like(x)], 1), ""),
        (lambda m, x: m.conv(x) + torch.zeros_like(x).masked_fill(x > 0, -1.0), ""),
        (lambda m, x: F.rrelu(m.conv(x)) + F.dropout(x, 0.0), "1 rrelu"),
        # A window of a dilated pool may have no element in a small image.
        (lambda m, x: F.max_pool2d(m.conv(x).mean((2, 3), keepdim=True), 2, 1, padding=1, dilation=2), "1 max_pool2d"),
        (lambda m, x: F.max_pool2d(F.adaptive_avg_pool2d(m.conv(x), 2), 2, 1, padding=1, dilation=2), ""),
        (lambda m, x: F.max_pool2d(m.conv(x)[0], 2)[None], ""),
        (lambda m, x: F.adaptive_avg_pool2d(m.conv(x)[0], 2)[None], "1 adaptive_avg_pool2d"),
        (lambda m, x: F.conv_transpose2d(m.conv(x)[0], m.conv.weight)[None], "1 conv_transpose2d"),
        # What is before a norm by the statistics of the batch keeps its schedule.
        (lambda m, x: F.batch_norm(m.conv(x), None, None, training=True), "1 batch_norm"),
        (lambda m, x: F.batch_norm(torch.cat([m.conv(x), x], 1), None, None, training=True), "1 batch_norm"),
        (lambda m, x: F.fold(F.unfold(m.conv(x), 3, padding=1), 8, 3, padding=1), "1 col2im"),
    ],
)
def test_operator_without_a_schedule_becomes_a_kernel_on_the_slow_path(
    function: Callable[[Whole, Tensor], Tensor], slow: str
) -> None:
    network = partitioned(Whole(function), torch.randn(1, 3, 8, 8))
    assert network.slow_path.partition(": ")[2] == slow


def test_numbers_are_rounded_to_the_decimal_places_that_are_asked_for() -> None:
    network = partitioned(Whole(lambda m, x: torch.round(m.conv(x), decimals=1)), torch.randn(1, 3, 8, 8))
    assert network.kernels[0].key.epilogue == ("bias", "mul(round(mul(x,10)),0.1)")


@pytest.mark.parametrize("add", [torch.sum, torch.cumsum])
def test_numbers_that_lose_their_fraction_before_they_are_added_up_are_refused(add: Callable[..., Tensor]) -> None:
    model = Whole(lambda m, x: m.conv(x) + add(x, 1, dtype=torch.int64).sum())
    with pytest.raises(UserError, match="with these operands has no kernel yet"):
        partitioned(model, torch.randn(1, 3, 8, 8))


def test_bits_that_are_read_as_other_numbers_are_refused() -> None:
    with pytest.raises(UserError, match=r"x\.view with these operands has no kernel yet"):
        partitioned(Whole(lambda m, x: m.conv(x.view(torch.int32).float())), torch.randn(1, 3, 8, 8))


def test_operator_in_another_precision_is_refused_by_name_and_line() -> None:
    with pytest.raises(UserError) as refusal:
        partitioned(Whole(lambda m, x: m.conv(x).double().relu()), torch.randn(1, 3, 8, 8))
    # What torch.export records is the innermost line of a module's forward method.
    line = Whole.forward.__code__.co_firstlineno + 1
    assert "x.double computes in float64" in str(refusal.value)
    assert f"(test_partition.py:{line}: return self.function(self, x))" in str(refusal.value)
    assert "\n" not in str(refusal.value)


class NamedLikeAKernel(nn.Module):
    """One input is called what the copy of the other one in another order is called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, x_nhwc: Tensor) -> Tensor:
        return self.conv(F.max_pool2d(x, 2) + x_nhwc)


class InBrain(nn.Conv2d):
    """A convolution that autocast computes in bfloat16."""

    def __init__(self) -> None:
        super().__init__(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


@pytest.mark.parametrize(
    ("model", "inputs", "reason"),
    [
        (nn.Conv2d(3, 3, 1).double(), (torch.zeros(1, 3, 4, 4).double(),), "4-D torch.float64"),
        (nn.LayerNorm(4), (torch.zeros(4),), "1-D torch.float32"),
        (nn.Identity(), (torch.zeros(1, 3, 4, 4),), "no kernel in it"),
        (
            NamedLikeAKernel(),
            (torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2)),
            "two values of the compiled network would be called 'x_nhwc'",
        ),
        (
            Whole(lambda m, x: m.conv(torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x * 2, (x,)))),
            (torch.zeros(1, 3, 4, 4),),
            "torch.cond has no kernel here (test_partition.py:",
        ),
        (
            InBrain(),
            (torch.zeros(1, 3, 4, 4),),
            "torch.autocast computes in bfloat16, and only float32 can be compiled so far (test_partition.py:",
        ),
        (
            Whole(lambda m, x: F.dropout(m.conv(x))),
            (torch.zeros(1, 3, 4, 4),),
            "dropout draws random numbers, and a compiled network makes the same of the same input (test_partition.py:",
        ),
        (
            Whole(lambda m, x: m.conv(x) + torch.randn(1, 3, 1, 1)),
            (torch.zeros(1, 3, 4, 4),),
            "; pass them in as an input, or keep them in a buffer",
        ),
        (
            nn.Sequential(nn.Conv1d(1, 4, 9), nn.ReLU()),
            (torch.zeros(1, 160),),
            "nn.Conv1d '0' takes the batch for channels; give each sample an axis of channels: --input 1x160",
        ),
    ],
)
def test_network_of_another_kind_is_refused(model: nn.Module, inputs: tuple[Tensor, ...], reason: str) -> None:
    with pytest.raises(UserError) as refusal:
        partition(ChannelGraph.trace(model, inputs))
    assert reason in str(refusal.value)


class MakesMore(nn.Module):
    """Computes a gate for a loss that its outputs do not depend on, as detectors do with boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = self.gate(x).exp() + 1
        gate.sin()
        return x.relu()


def test_what_the_outputs_do_not_depend_on_is_left_out(tmp_path: Path) -> None:
    kernels = partitioned(MakesMore(), torch.randn(1, 3, 6, 6)).kernels
    assert [(kernel.key.op, kernel.key.epilogue) for kernel in kernels] == [
        ("conv2d", ("bias", "relu")), ("to_nchw", ())
    ]  # fmt: skip
    assert_compiled_equals_pytorch(MakesMore(), torch.randn(1, 3, 6, 6), tmp_path)
