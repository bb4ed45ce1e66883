"""Proves that convolutions and pooling of volumes (N, C, D, H, W) compile to what PyTorch computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor, nn

from aap_hw.compile.families import family_of, multiply_accumulates, weight_shape
from aap_hw.compile.front.partition import partition
from aap_hw.compile.gpu.series import in_series
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import DeviceTarget, device_target
from aap_hw.compile.library.build import build_kernel
from aap_hw.compile.library.folding import filters_first
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from tests.compile.assembly import TARGETS, assembly, multiplying_loops
from tests.compile.running import assert_compiled_equals_pytorch, call, randomise, target

Triple = tuple[int, int, int]
GPU = device_target({"kind": "cuda", "arch": "sm_80"}, 1)


@dataclass(frozen=True)
class Volume:
    """A convolution of volumes at its widths."""

    width_in: int
    width_out: int
    size: Triple = (4, 5, 7)
    kernel: Triple = (3, 3, 3)
    stride: Triple = (1, 1, 1)
    padding: Triple = (1, 1, 1)
    dilation: Triple = (1, 1, 1)
    groups: int = 1
    epilogue: tuple[str, ...] = ("bias", "add", "relu")
    batch: int = 1
    depthwise: bool = False

    def address(self) -> Address:
        key = KernelKey.make(
            "depthwise_conv3d" if self.depthwise else "conv3d",
            self.size,
            self.batch,
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups if self.groups > 1 else "",
            epilogue=self.epilogue,
        )
        return Address(key, (self.width_in, self.width_out))


CASES = [
    Volume(17, 37),
    Volume(3, 16, (5, 9, 11), (3, 7, 5), (1, 2, 2), (1, 3, 2), batch=2),
    Volume(24, 1, kernel=(2, 1, 3), padding=(0, 0, 1), stride=(2, 2, 1), epilogue=("bias",)),
    Volume(5, 24, (6, 7, 5), dilation=(2, 1, 2), padding=(2, 1, 2), epilogue=("bias", "relu6"), batch=2),
    Volume(6, 12, groups=3, stride=(1, 1, 2)),
    Volume(1, 3, (1, 1, 1)),
    Volume(64, 96, (2, 2, 3)),  # weights larger than the volume: the loops are the other way round
    Volume(8, 8, (3, 4, 5), (5, 1, 1), padding=(4, 0, 0)),  # windows that miss the volume
    Volume(37, 37, (4, 5, 17), batch=2, depthwise=True),
    Volume(24, 24, (5, 9, 11), (3, 5, 3), (1, 2, 2), (1, 2, 1), epilogue=("bias", "silu"), depthwise=True),
    Volume(13, 13, (6, 8, 9), (2, 3, 3), (2, 1, 3), (2, 0, 3), (2, 2, 3), epilogue=("bias",), depthwise=True),
    Volume(150, 150, (2, 3, 4), (5, 1, 2), padding=(4, 0, 1), depthwise=True),  # windows that miss the volume
]


def wrong(cases: list[Volume], on: DeviceTarget) -> list[str]:
    """The cases that differ from PyTorch in float64, compiled as one library for this machine's CPU."""
    functions = [build_kernel(case.address(), on) for case in cases]
    codes = {f"k{i}": in_series(f.code).with_attr("global_symbol", f"k{i}") for i, f in enumerate(functions)}
    library = tvm.compile(tvm.IRModule(codes), target=target().tvm).jit()
    generator, found = torch.Generator().manual_seed(0), []
    for i, (case, function) in enumerate(zip(cases, functions, strict=True)):
        shapes = [(case.batch, case.width_in, *case.size), weight_shape(case.address()), (case.width_out,)]
        image, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
        how = case.stride, case.padding, case.dilation, case.width_in if case.depthwise else case.groups
        sums = F.conv3d(image.double(), weight.double(), bias.double(), *how)
        sizes = F.conv3d(image.double().abs(), weight.double().abs(), bias.double().abs(), *how)
        residual = torch.randn(sums.shape, generator=generator)
        for step in case.epilogue[1:]:
            sums = sums + residual if step == "add" else getattr(F, step)(sums)
        assert function.pack is not None
        given = {
            "activation": image.permute(0, 2, 3, 4, 1).numpy(),
            "residual": residual.permute(0, 2, 3, 4, 1).numpy(),
            "weight": function.pack(weight.numpy()),
            "bias": bias.numpy(),
        }
        output = tvm.runtime.tensor(np.full(function.output_shape, np.nan, "float32"))
        arguments = [np.ascontiguousarray(given[argument.role]) for argument in function.arguments]
        library[f"k{i}"](*map(tvm.runtime.tensor, arguments), output)
        difference = np.abs(output.numpy().transpose(0, 4, 1, 2, 3) - sums.numpy())
        assert family_of(case.address().key).output(case.address()) == function.output_shape
        assert multiply_accumulates(case.address()) == sums[:, 0].numel() * weight.numel()
        if not (difference <= 1e-6 * (1 + sizes.numpy())).all():
            found.append(f"{case}: {difference.max()}")
    return found


@pytest.mark.parametrize(
    "on",
    [target(), pytest.param(target(2), marks=pytest.mark.slow), pytest.param(GPU, marks=pytest.mark.slow)],
    ids=["cpu", "two threads", "gpu"],
)
def test_convolutions_of_volumes_equal_pytorch(on: DeviceTarget) -> None:
    assert wrong(CASES, on) == []


@pytest.mark.slow  # test_assembly reads such loops, too
@pytest.mark.parametrize("depthwise", [False, True])
def test_the_inner_loops_leave_the_stack_alone(depthwise: bool) -> None:
    case = Volume(64, 64, (4, 14, 14), epilogue=("bias", "relu"), depthwise=depthwise).address()
    for processor in TARGETS.values():
        loops = multiplying_loops(assembly(build_kernel(case, processor).code, processor))
        assert loops
        assert [spill for loop in loops for spill in loop.spills] == []


@pytest.mark.parametrize("text", ["conv3d 4x4 kernel=3x3x3", "conv3d 4x4x4 kernel=3x3"])
def test_keys_of_other_volumes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not known to this version"):
        build_kernel(Address(KernelKey.parse(f"{text} float32 batch=1"), (8, 8)), target())


class Grown(nn.Module):
    """Transposed convolutions of volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.ConvTranspose3d(5, 18, 2, 2, bias=False), nn.BatchNorm3d(18)
        self.second = nn.ConvTranspose3d(18, 6, (4, 3, 5), (2, 1, 3), (1, 1, 0), (1, 0, 2), groups=2)
        self.last = nn.ConvTranspose3d(6, 37, (3, 4, 1), (3, 2, 2), (2, 1, 0))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(F.relu(self.norm(self.first(x)))))


@pytest.mark.parametrize("on", [None, pytest.param(GPU, marks=pytest.mark.slow)], ids=["cpu", "gpu"])
def test_transposed_convolutions_of_volumes_equal_pytorch(on: DeviceTarget | None, tmp_path: Path) -> None:
    model, clips = randomise(Grown()), torch.randn(2, 5, 3, 2, 4)
    network = partition(ChannelGraph.trace(model, (clips,)))
    kernels = [kernel for kernel in network.kernels if kernel.key.op == "conv_transpose3d"]
    assert len(kernels) == 3
    assert network.slow_path == ""
    if on is None:
        assert_compiled_equals_pytorch(model, clips, tmp_path)
        return
    layers, value = [model.first, model.second, model.last], clips
    for kernel, layer in zip(kernels, layers, strict=True):
        address = Address(kernel.key.having(epilogue=("bias",)), kernel.at(network.dense).widths)
        assert multiply_accumulates(address) == value[:, 0].numel() * layer.weight.numel()
        bias = torch.zeros(address.width_out) if layer.bias is None else layer.bias.detach()
        actual = call(
            build_kernel(address, on),
            activation=value.permute(0, 2, 3, 4, 1).numpy(),
            weight=filters_first(layer.weight.detach(), layer.groups).numpy(),
            bias=bias.numpy(),
        )
        value = layer(value).detach()
        assert np.abs(actual.transpose(0, 4, 1, 2, 3) - value.numpy()).max() < 1e-5


class Clip(nn.Module):
    """Every kind of layer that there is for volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(3, 12, (3, 5, 3), (1, 2, 2), (1, 2, 1), bias=False), nn.BatchNorm3d(12)
        self.grouped, self.one = nn.Conv3d(12, 18, 3, padding=1, groups=3), nn.Conv3d(18, 12, 1)
        self.planes = nn.Conv3d(12, 12, (1, 3, 3), padding=(0, 1, 1), groups=12)
        self.columns = nn.Conv3d(12, 12, (3, 1, 1), (2, 1, 1), (1, 0, 0))
        self.each = nn.Conv3d(12, 12, 3, padding=1, groups=12)
        self.last, self.alone = nn.Conv3d(12, 7, (2, 3, 2), (2, 1, 2), (1, 2, 0), (2, 1, 2)), nn.BatchNorm3d(7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.max_pool3d(self.one(self.grouped(x)) + x, (2, 3, 2), (1, 2, 2), (1, 1, 0))
        x = self.each(self.columns(self.planes(x)))
        y = self.alone(F.relu(self.last(F.avg_pool3d(x, 3, 2, 1, True, False, 7))))
        x = F.adaptive_avg_pool3d(F.avg_pool3d(x, (1, 2, 2), 1), 1).flatten(1)
        return torch.cat([x, y.mean((2, 3, 4)), y.flatten(1)], 1)


def test_networks_of_clips_compile_to_what_pytorch_computes(tmp_path: Path) -> None:
    model, clips = randomise(Clip()), torch.randn(2, 3, 6, 21, 17)
    network = partition(ChannelGraph.trace(model, (clips,)))
    assert network.slow_path == ""
    found = [f"{key.op} {'x'.join(map(str, key.size))} {key.batch}" for key in (k.key for k in network.kernels)]
    assert found[1:9] == [
        "conv3d 6x21x17 2",
        "conv3d 6x11x9 2",
        "conv2d 11x9 12",
        "max_pool2d 11x9 12",
        "max_pool2d 6x24 2",
        "depthwise_conv2d 6x4 14",
        "conv2d 7x24 2",
        "depthwise_conv3d 4x6x4 2",
    ]
    assert network.kernels[3].key.epilogue == ("bias", "add")
    assert_compiled_equals_pytorch(model, clips, tmp_path)
