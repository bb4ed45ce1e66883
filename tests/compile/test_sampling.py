"""Proves that rows and pixels at computed places equal PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.cpu import loops
from aap_hw.compile.families.sampling import Gather
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.library.lowering import compile_network
from aap_hw.errors import UserError
from tests.compile.running import device, target

NUMBERS = torch.tensor([3, 0, 3, 5])


def on_grid(mode: str, padding: str, *, align_corners: bool) -> Callable[[Sampling, Tensor, Tensor], Tensor]:
    def sampled(_: Sampling, x: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(x, grid, mode, padding, align_corners=align_corners)

    return sampled


SAMPLES: list[Callable[[Sampling, Tensor, Tensor], Tensor]] = [
    *[on_grid("bilinear", padding, align_corners=True) for padding in ("zeros", "border")],
    *[on_grid("bilinear", padding, align_corners=False) for padding in ("zeros", "border")],
    *[on_grid("bicubic", padding, align_corners=padding == "zeros") for padding in ("zeros", "border")],
    *[on_grid("nearest", padding, align_corners=False) for padding in ("zeros", "border")],
    lambda m, x, g: m.table(torch.argmax(F.adaptive_avg_pool2d(x, 1).flatten(1), 1)),
    lambda m, x, g: x.index_select(2, m.numbers),
    lambda m, x, g: x[:, m.numbers],
    lambda m, x, g: x.flatten(2)[:, :, m.numbers.reshape(2, 2) - 4],
]


class Sampling(nn.Module):
    numbers: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.table = nn.Conv2d(3, 11, 1), nn.Embedding(11, 13)
        self.register_buffer("numbers", NUMBERS)

    def forward(self, x: Tensor, grid: Tensor) -> list[Tensor]:
        x = self.conv(x)
        return [sample(self, x, grid.permute(0, 2, 3, 1)) for sample in SAMPLES]


RANDOM = torch.Generator().manual_seed(2)
# Points far outside, too, and on edges; none half way between two pixels, where rounding decides which is nearest.
INPUTS = (torch.randn(2, 3, 6, 8, generator=RANDOM), 1.4 * torch.randn(2, 2, 5, 9, generator=RANDOM))
INPUTS[1][0, :, 0, :3] = torch.tensor([[1.0, -1.0, 1e6], [1.0, 1.0, -1e9]])


def assert_equal(actual: list[np.ndarray]) -> None:
    with torch.no_grad():
        for i, (found, expected) in enumerate(zip(actual, Sampling().eval()(*INPUTS), strict=True)):
            assert found.shape == expected.shape, i
            assert np.abs(found - expected.numpy()).max() < 1e-5, i


def test_sampled_values_equal_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "WORTH_SHARING", 1)  # as one thread samples is seen beside the definitions
    network = compile_network(Sampling().eval(), INPUTS, target(2), tmp_path / "sampled.so")
    assert network.slow_path == ""
    learned = sum(kernel.parameters(network.dense) for kernel in network.kernels)
    assert learned == sum(each.numel() for each in Sampling().parameters())
    loaded = device(2).load(tmp_path / "sampled.so")
    loaded.set_inputs("main", [each.numpy() for each in INPUTS])
    assert_equal(loaded.run("main"))


@pytest.mark.parametrize("attributes", ["table=w[1,3]", "index=x[3] table=w[1,3,o", "index=x[3] table=w[1,open,o]"])
def test_a_text_that_is_no_gather_is_refused(attributes: str) -> None:
    with pytest.raises(UserError, match="is not a kernel of this version"):
        Gather.of(Address(KernelKey.parse(f"gather - {attributes} float32 batch=1"), (1, 1)))
