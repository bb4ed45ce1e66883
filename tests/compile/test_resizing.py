"""Proves that interpolation and adaptive pooling equal PyTorch's.

All of them are outputs of one network, so that they are compiled at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.cpu import loops
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.library.build import build_kernel
from aap_hw.compile.library.lowering import compile_network
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from tests.compile.running import device, target

Resize = Callable[[Tensor], Tensor]
RESIZED: list[Resize] = [
    lambda x: F.interpolate(x, scale_factor=2),
    lambda x: F.interpolate(x, size=(13, 9)),
    lambda x: F.interpolate(x, scale_factor=1.7),
    lambda x: F.interpolate(x, scale_factor=(2.3, 0.6), mode="nearest-exact"),
    lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    lambda x: F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=True),
    lambda x: F.interpolate(x, size=(5, 20), mode="bilinear"),
    lambda x: F.interpolate(x, size=(3, 4), mode="bilinear"),
    lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
    lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True),
    lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    lambda x: F.interpolate(x, size=(7, 25), mode="bicubic", align_corners=True),
    lambda x: F.interpolate(x, size=(3, 3), mode="bilinear", antialias=True),
    lambda x: F.interpolate(x, size=(3, 30), mode="bicubic", antialias=True),
    # Of images PyTorch forgets a factor that makes as many pixels or twice as many, of lines it does not.
    lambda x: F.interpolate(x[:, :, :4, :4], scale_factor=(1.2, 2.2)),
    lambda x: F.interpolate(x[:, :, :1, :4], scale_factor=(1, 2.2)),
    lambda x: F.interpolate(x[:, :, :4, :4], scale_factor=(1.2, 2.2), mode="bilinear"),
    lambda x: F.interpolate(x[:, :, :4, :4], scale_factor=(1.2, 0.6), mode="bicubic", antialias=True),
    lambda x: F.interpolate(x.flatten(2)[..., :4], scale_factor=2.2),
    lambda x: F.interpolate(x.flatten(2)[..., :4], scale_factor=1.2),
    lambda x: F.interpolate(x.flatten(2), scale_factor=2),
    lambda x: F.interpolate(x.flatten(2), size=150, mode="linear"),
    # Volumes of 2 x 4 x 12 pixels: of them PyTorch forgets no factor, either.
    lambda x: F.interpolate(x.unflatten(2, (2, 4)), scale_factor=2, mode="trilinear"),
    lambda x: F.interpolate(x.unflatten(2, (2, 4)), scale_factor=(2.3, 1.7, 0.6), mode="trilinear"),
    lambda x: F.interpolate(x.unflatten(2, (2, 4)), size=(5, 4, 12), mode="trilinear", align_corners=True),
    lambda x: F.interpolate(x.unflatten(2, (2, 4)), size=(2, 7, 5), mode="trilinear", align_corners=True),
    lambda x: F.interpolate(x.unflatten(2, (2, 4)), scale_factor=2),
    lambda x: F.interpolate(x.unflatten(2, (2, 4))[..., :4], scale_factor=(1, 2.2, 2.2)),
    lambda x: F.interpolate(x.unflatten(2, (2, 4)), scale_factor=(1.4, 1.2, 2.2)),
    lambda x: F.interpolate(x.unflatten(2, (2, 4)), scale_factor=(2, 1.2, 1), mode="trilinear"),
    lambda x: F.interpolate(x.unflatten(2, (2, 4)), scale_factor=(1.4, 1, 1), mode="trilinear"),
    lambda x: F.interpolate(x.unflatten(2, (2, 4)), size=(3, 5, 7), mode="nearest-exact"),
    lambda x: F.adaptive_avg_pool3d(x.unflatten(2, (2, 4)), (2, 3, 5)),
    lambda x: F.adaptive_avg_pool3d(x.unflatten(2, (2, 4)), (1, 2, 4)),
    lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    lambda x: F.adaptive_avg_pool2d(x, (10, 18)),
    lambda x: F.adaptive_avg_pool1d(x.flatten(2), 7),
    # Of a rectified image, the largest value of a window is never below 0, as what lies outside might be.
    lambda x: F.adaptive_max_pool2d(F.relu(x), (3, 5)),
    lambda x: F.adaptive_max_pool2d(x, 1),
    lambda x: F.adaptive_max_pool1d(x.flatten(2), 7),
    lambda x: F.adaptive_max_pool3d(x.unflatten(2, (2, 4)), (2, 3, 5)),
    # Windows so large that their code would take long to compile.
    lambda x: F.max_pool2d(F.interpolate(x, scale_factor=2), (16, 24)),
    lambda x: F.max_pool2d(F.interpolate(x, scale_factor=2), 17, 3, padding=8),
    lambda x: F.avg_pool2d(F.interpolate(x, scale_factor=2), (16, 24)),
]


class Resizing(nn.Module):
    def __init__(self, some: Sequence[Resize]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.some = nn.Conv2d(3, 11, 1), some

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv(x)
        return [resize(x) for resize in self.some]


IMAGE = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))


# A third of them is enough for every day.
@pytest.mark.parametrize("some", [RESIZED[::3], pytest.param(RESIZED[1::3] + RESIZED[2::3], marks=pytest.mark.slow)])
def test_resized_images_equal_pytorch(some: list[Resize], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "WORTH_SHARING", 1)  # as one thread resizes is seen beside the definitions
    model = Resizing(some).eval()
    network = compile_network(model, IMAGE, target(2), tmp_path / "resized.so")
    assert not network.slow_path
    loaded = device(2).load(tmp_path / "resized.so")
    loaded.set_inputs("main", [IMAGE.numpy()])
    with torch.no_grad():
        for i, (found, expected) in enumerate(zip(loaded.run("main"), model(IMAGE), strict=True)):
            assert found.shape == expected.shape, i
            assert np.abs(found - expected.numpy()).max() < 2e-6, i


def test_a_factor_that_says_what_the_sizes_say_is_no_other_kernel() -> None:
    def keys(resize: Callable[[Tensor], Tensor]) -> list[KernelKey]:
        class One(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return resize(x)

        return [kernel.key for kernel in partition(ChannelGraph.trace(One(), (IMAGE,))).kernels]

    assert keys(RESIZED[4]) == keys(lambda x: F.interpolate(x, size=(16, 24), mode="bilinear"))
    assert keys(RESIZED[8]) != keys(RESIZED[9])


@pytest.mark.parametrize("attributes", ["how=lanczos to=4x4", "how=linear to=0x4", "factors=2.0 how=linear to=4x4"])
def test_keys_that_do_not_say_how_to_resize_are_refused(attributes: str) -> None:
    with pytest.raises(UserError, match="is not a kernel of this version"):
        build_kernel(Address(KernelKey.parse(f"resize 8x8 {attributes} float32 batch=1"), (8, 8)), target())
