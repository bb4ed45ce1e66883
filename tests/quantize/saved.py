"""A network that torchao's quantizer for x86 has quantised, exported as its users do: we have no part in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from aap_hw.quantize.pt2e import convert_pt2e, prepare_pt2e
from tests.compile.running import randomise

IMAGE = (3, 16, 16)


class Residual(nn.Module):
    """Batch norm, a sum, a pool and a depthwise convolution between a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv, self.depthwise = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, 2, 1, groups=12)
        self.head = nn.Linear(12, 10)
        # The quantizer knows modules, and each only once.
        self.first, self.second, self.third, self.pool = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.first(self.norm(self.stem(x))))
        x = self.third(self.depthwise(self.second(self.conv(x) + x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


def images(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(1, *IMAGE, generator=generator) for _ in range(count)]


def quantised_program(batch: int = 1) -> ExportedProgram:
    """The program that they save, for so many images at once."""
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    torch.manual_seed(7)
    example = (torch.zeros(batch, *IMAGE),)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(randomise(Residual()).eval(), example).module(), quantizer)
    for image in images(4):
        prepared(image.expand(batch, -1, -1, -1))
    return torch.export.export(convert_pt2e(prepared), example)
