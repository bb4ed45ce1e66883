"""Networks in int8 that take pixels as a camera gives them, and normalise them in their first kernel.

The kernel reads bytes and makes bytes: those that the float image would be quantised to. It does not go into the first
layer's weights, since that pads with zeros, which are no pixels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from aap_hw.errors import UserError
from aap_hw.graph.program.exporting import traced
from aap_hw.train.data import LabelledImages
from aap_hw.train.samples import Samples

LARGEST = 255


@dataclass(frozen=True)
class Preprocessing:
    """How pixels from 0 to 255 become an input: ``(pixel * scale - mean) / std``, with a mean and std a channel."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def factor_and_offset(self, channels: int) -> tuple[Tensor, Tensor]:
        """The same as a product and a sum: (channels, 1, 1) each."""
        mean, std = (torch.tensor(each, dtype=torch.float64).expand(channels) for each in (self.mean, self.std))
        return tuple(each.float().reshape(-1, 1, 1) for each in (self.scale / std, -mean / std))  # type: ignore[return-value]

    def undone(self, images: Tensor) -> Tensor:
        """The pixels that images (N, C, H, W) would be of, as whole numbers in float32."""
        factor, offset = self.factor_and_offset(images.shape[1])
        return ((images - offset) / factor).round().clamp(0, LARGEST)


class _OfPixels(nn.Module):
    """A quantised network behind the normalisation of its image; pixels are stored as they are."""

    factor: Tensor
    offset: Tensor

    def __init__(self, network: GraphModule, how: Preprocessing, channels: int) -> None:
        super().__init__()
        # Made anew, as PyTorch's own module refuses eval().
        self.network = GraphModule(network, copy.deepcopy(network.graph))
        factor, offset = how.factor_and_offset(channels)
        self.register_buffer("factor", factor)
        self.register_buffer("offset", offset)

    def forward(self, pixels: Tensor) -> Any:
        rounding = torch.ops.quantized_decomposed
        how = (1.0, 0, 0, LARGEST, torch.uint8)
        stored = rounding.dequantize_per_tensor(rounding.quantize_per_tensor(pixels, *how), *how)
        return self.network(stored * self.factor + self.offset)


def of_pixels(network: GraphModule, how: Preprocessing, image: tuple[int, int, int]) -> GraphModule:
    """A quantised network of one image (1, C, H, W) as one of its pixels, in the same order, in float32."""
    program = traced(_OfPixels(network, how, image[0]).eval(), (torch.zeros(1, *image),))
    module: GraphModule = program.module(check_guards=False)
    return module


def is_unknown(data: LabelledImages) -> bool:
    """Whether nobody said how pixels are normalised: neither the weights nor images that are the network's."""
    return data.stands_in and data.normalisation is None


def preprocessing_of(data: Samples) -> Preprocessing:
    """How the pixels of some samples become a network's input.

    Raises
    ------
    UserError : they are made of no pixels, or only stand in for those that the network will see.
    """
    if isinstance(data, LabelledImages) and is_unknown(data):
        raise UserError("with --pixels the network normalises its image as those of --data are; give --data")
    if not isinstance(data, LabelledImages):
        raise UserError("samples of --data that are no pictures are made of no pixels; leave --pixels out")
    mean, std = (tuple(each.flatten().tolist()) for each in data.mean_and_std)
    return Preprocessing(1 / 255, mean, std)
