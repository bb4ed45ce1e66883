"""Proves that normalisations equal PyTorch's, on a CPU and as what dlight makes of them, also far from zero."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor, nn

from aap_hw.compile.front.partition import partition
from aap_hw.compile.gpu.series import in_series
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import device_target
from aap_hw.compile.library.build import build_kernel
from aap_hw.graph import ChannelGraph
from tests.compile.running import assert_compiled_equals_pytorch, called, target

GPU = device_target({"kind": "cuda", "arch": "sm_80"}, 1)
Affine = tuple[Tensor, ...]


def by_pixel(x: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    return norm(x.movedim(1, -1)).movedim(-1, 1)


# Key, width, and PyTorch's function of an image (N, C, H, W), of its factors and summands.
CASES: list[tuple[str, int, Callable[[Tensor, Affine], Tensor]]] = [
    *[
        (
            f"layer_norm {pixels}x1 affine=1 eps=1e-05 float32 batch=2",
            width,
            lambda x, a: by_pixel(x, lambda rows: F.layer_norm(rows, rows.shape[-1:], *a)),
        )
        for pixels, width in [(5, 1), (5, 7), (4, 24), (3, 57), (3, 193), (2, 1000), (1, 20011)]
    ],
    (
        "layer_norm 6x1 epilogue=relu eps=0.1 float32 batch=1",
        33, lambda x, a: by_pixel(x, lambda rows: F.layer_norm(rows, (33,), eps=0.1).relu()),
    ),
    (
        "rms_norm 6x1 affine=1 eps=1e-06 float32 batch=1",
        70, lambda x, a: by_pixel(x, lambda rows: F.rms_norm(rows, (70,), a[0], 1e-6) + a[1]),
    ),
    (
        "group_norm 60x1 affine=1 each=4 epilogue=silu eps=1e-05 float32 batch=2",
        12, lambda x, a: F.silu(F.group_norm(x, 3, *a)),
    ),
    ("group_norm 7x1 each=5 eps=1e-05 float32 batch=1", 35, lambda x, a: F.group_norm(x, 7)),
    ("group_norm 9000x1 affine=1 each=1 eps=1e-05 float32 batch=1", 3, lambda x, a: F.instance_norm(x, None, None, *a)),
    ("group_norm 1037x1 affine=1 each=all eps=1e-05 float32 batch=1", 21, lambda x, a: F.group_norm(x, 1, *a)),
]  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_normalisations_equal_pytorch_near_zero_and_far_from_it(device: str) -> None:
    addresses = [Address(KernelKey.parse(key), (width, width)) for key, width, _ in CASES]
    functions = [build_kernel(address, target() if device == "cpu" else GPU) for address in addresses]
    module = {f"k{i}": in_series(f.code).with_attr("global_symbol", f"k{i}") for i, f in enumerate(functions)}
    library = tvm.compile(tvm.IRModule(module), target=target().tvm).jit()
    random = torch.Generator().manual_seed(1)
    for i, ((key, width, operator), function) in enumerate(zip(CASES, functions, strict=True)):
        n, height, _, _ = function.output_shape
        affine = 1 + torch.rand(width, generator=random), torch.randn(width, generator=random)
        for offset in (0, 1000):
            image = torch.randn(n, width, height, 1, generator=random) + offset * (key[:3] != "rms")
            inputs = [image.movedim(1, -1), *(affine if "affine" in key else ())]
            actual = torch.from_numpy(called(library[f"k{i}"], function, inputs)).movedim(-1, 1)
            expected = operator(image.double(), tuple(each.double() for each in affine))
            # At 1000, neighbouring numbers are 6e-5 apart, and a mean is one of them.
            assert (actual - expected).abs().max() <= (2e-4 if offset else 1e-5) * (1 + expected.abs().max()), key


class Normalised(nn.Module):
    """Channels and pixels normalised in all ways, on images and on rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 10, 3, padding=1), nn.Linear(10, 4)
        self.layers = nn.ModuleList([nn.LayerNorm(10), nn.RMSNorm(10), nn.LayerNorm(10, bias=False), nn.LayerNorm(5)])
        self.group, self.instance = nn.GroupNorm(5, 10), nn.InstanceNorm2d(10, affine=True)
        self.plain, self.context = nn.GroupNorm(2, 10, affine=False), nn.LayerNorm([10, 1, 1])
        self.image, self.whole = nn.LayerNorm([6, 5], bias=False), nn.RMSNorm([3, 6, 5])

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[3](self.image(self.whole(x)))  # over the pixels of each channel, and of each line
        x = F.relu(self.group(self.stem(x)))
        x = self.plain(self.instance(x).flatten(2)).unflatten(2, (6, 5))
        for layer in list(self.layers)[:3]:
            x = layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + F.relu(self.context(x.mean((2, 3), keepdim=True)))  # as in GCNet
        result: Tensor = self.last(x.flatten(2).transpose(1, 2)) + self.last(x.permute(0, 2, 3, 1)).flatten(1, 2)
        return result


def test_a_network_of_normalisations_has_no_slow_kernel(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model, image = Normalised().eval(), torch.randn(2, 3, 6, 5)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    network = partition(ChannelGraph.trace(model, (image,)))
    assert network.slow_path == ""
    keys = [str(kernel.key) for kernel in network.kernels if kernel.key.op == "layer_norm"]
    assert len(set(keys)) == 4, "rows of one number are one key, whatever rank they have"
    assert_compiled_equals_pytorch(model, image, tmp_path)
