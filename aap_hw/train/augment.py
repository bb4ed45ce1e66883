"""Varying training images: mirrored, shifted or cropped, and blended with each other.

All random numbers of a batch are drawn for the whole of it, also by a process that trains on a part, so that any number
of processes sees the same images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from aap_hw.errors import UserError
from aap_hw.graph.program.inputs import Tensors
from aap_hw.train.data import LabelledImages
from aap_hw.train.samples import Samples
from aap_hw.train.settings import Augmentation


@dataclass(frozen=True)
class Draws:
    """The random numbers of some images.

    Attributes
    ----------
    mirrored : whether each is, (n, 1).
    down, right : pixels that each is shifted by, (n, 1), from 0 to twice the padding.
    crops : as `LazyImages.read` takes them, (n, 4).
    """

    mirrored: torch.Tensor
    down: torch.Tensor
    right: torch.Tensor
    crops: torch.Tensor

    @classmethod
    def of(cls, count: int, how: Augmentation, generator: torch.Generator, *, crops: bool) -> Draws:
        """Draw for so many images; crops instead of shifts if asked for."""
        still = torch.zeros(count, 1, dtype=torch.int64)
        mirrored = torch.rand(count, 1, generator=generator) < 0.5 if how.flip else still > 0
        shifts = (still, still)
        if how.crop_padding and not crops:
            span = 2 * how.crop_padding + 1
            shifts = (
                torch.randint(span, (count, 1), generator=generator),
                torch.randint(span, (count, 1), generator=generator),
            )
        parts = torch.rand(count if crops else 0, 4, generator=generator, dtype=torch.float64)
        return cls(mirrored, *shifts, parts)

    def __getitem__(self, part: slice) -> Draws:
        return Draws(self.mirrored[part], self.down[part], self.right[part], self.crops[part])


def training_batch(
    data: Samples, chosen: torch.Tensor, how: Augmentation, draws: Draws
) -> tuple[Tensors, torch.Tensor]:
    """Training samples at some positions as they are kept, and their labels; images, bytes (n, C, H, W), are varied.

    Those that can be read stand in for those that cannot: batches stay as large as they were planned.

    Raises
    ------
    UserError : none can be read.
    """
    if not isinstance(data, LabelledImages):
        return data.stored("train", chosen)
    if not data.crops_are_random:
        images, labels = data.batch("train", chosen)
        return (vary(images, draws, how.crop_padding),), labels
    images, labels = data.batch("train", chosen, draws.crops.numpy())
    if not len(images):
        raise UserError(f"none of the {len(chosen)} images of a batch can be read; get the data set again")
    if len(images) < len(chosen):
        again = torch.arange(len(chosen)) % len(images)
        images, labels = images[again], labels[again]
    return (vary(images, draws, 0),), labels


def vary(images: torch.Tensor, draws: Draws, padding: int) -> torch.Tensor:
    """Mirror and shift each image, filling with zeros; images of shape (n, C, H, W) and any type are not changed."""
    n, _, height, width = images.shape
    rows, columns = torch.arange(height).expand(n, -1), torch.arange(width).expand(n, -1)
    columns = torch.where(draws.mirrored, width - 1 - columns, columns)
    if padding:
        images = F.pad(images, (padding,) * 4)
        rows, columns = rows + draws.down, columns + draws.right
    # One gather of all images: (n, 1, 1) picks the image, (n, H, 1) its rows, (n, 1, W) its columns.
    picked = images.movedim(1, 3)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.movedim(3, 1)


def draw_share(mixup: float, generator: torch.Generator) -> float:
    """Share of itself that each image of a batch keeps when it is blended; 1 without mixup."""
    if not mixup:
        return 1.0
    # torch has no Beta distribution that takes a generator.
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(mixup, mixup))


def blend(inputs: torch.Tensor, share: float) -> torch.Tensor:
    """Each input blended with its counterpart from the other end of the batch."""
    return inputs if share == 1.0 else share * inputs + (1 - share) * inputs.flip(0)
