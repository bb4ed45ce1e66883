"""Labelled images as bytes, and how they become normalised network inputs a batch at a time.

Covers images in memory and images that are decoded when they are used, and the Fashion-MNIST subset that ships with the
package. Where other images come from is in `aap_hw.train.sources`; augmentation is part of training.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from aap_hw.errors import UserError
from aap_hw.graph.program.inputs import Tensors
from aap_hw.inputs import Inputs
from aap_hw.train.checks import check_images, check_labels
from aap_hw.train.samples import Indices, Samples, Split, positions

InputShape = tuple[int, int, int]
Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

EMBEDDED_FILE = "fashion_mnist_12k.npz.xz"
# Of the unpacked .npz: the packed bytes may differ between versions of the compressor, the content must not.
EMBEDDED_SHA256 = "be3dc019fff2070fcec452bd84281c0b49889b9208b7c283ee7b3dd29e2ae641"
CLASS_NAMES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


@dataclass(frozen=True)
class Normalisation:
    """What is taken off each channel of images between 0 and 1, and what it is then divided by."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if not len(self.mean) == len(self.std) > 0 or not finite or not all(value > 0 for value in self.std):
            raise UserError(
                f"images cannot be normalised with mean {self.mean} and deviation {self.std}; give one number a "
                "channel each, deviations above 0"
            )
        if max(self.mean) > 1:
            raise UserError(
                f"the mean {self.mean} is not of images between 0 and 1; divide means and deviations of pixels "
                "from 0 to 255 by 255"
            )

    @property
    def text(self) -> str:
        """As ``--normalise`` takes it, such as ``0.5,0.5,0.5/0.25,0.25,0.25``."""
        return "/".join(",".join(map(str, values)) for values in (self.mean, self.std))


class LazyImages(ABC):
    """Images that are decoded each time they are used, where an array of all of them would not fit."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """As of an array: (N, C, H, W)."""

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def read(self, indices: npt.NDArray[np.int64], crops: npt.NDArray[np.float64] | None) -> tuple[Bytes, Mask]:
        """Decode some images.

        Parameters
        ----------
        crops
            For each image four numbers between 0 and 1 that choose a random part of it (area, shape, place); None takes
            its middle.

        Returns
        -------
        Bytes (n, C, H, W), and for each whether it could be decoded.
        """


class SomeImages(LazyImages):
    """Some of other images, in an order of their own."""

    def __init__(self, images: LazyImages, chosen: npt.NDArray[np.int64]) -> None:
        self._images, self._chosen = images, chosen

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array: (N, C, H, W)."""
        return (len(self._chosen), *self._images.shape[1:])

    def read(self, indices: npt.NDArray[np.int64], crops: npt.NDArray[np.float64] | None) -> tuple[Bytes, Mask]:
        """Decode some of them; see `LazyImages.read`."""
        return self._images.read(self._chosen[indices], crops)


@dataclass(frozen=True, eq=False)
class LabelledImages(Samples):
    """A training and a test set of equally large images.

    Parameters
    ----------
    train_images, test_images, val_images
        Bytes of shape (N, H, W) for grey images, or (N, C, H, W). Those for validation may be left out.
    train_labels, test_labels, val_labels
        Class numbers of shape (N,), from 0 to ``len(class_names) - 1``, of any type of whole numbers.
    class_names
        One name per class.
    normalisation
        What networks for these images expect; None takes the mean and deviation of the training pixels.
    stands_in
        Whether they are not what the network will see, but taken as nobody said what that is.

    Raises
    ------
    UserError : images and labels do not belong together, or there are none.
    """

    train_images: Bytes | LazyImages
    train_labels: Labels
    test_images: Bytes | LazyImages
    test_labels: Labels
    class_names: tuple[str, ...]
    normalisation: Normalisation | None = None
    val_images: Bytes | LazyImages | None = None
    val_labels: Labels | None = None
    stands_in: bool = False

    def __post_init__(self) -> None:
        if (self.val_images is None) != (self.val_labels is None):
            raise UserError("for validation there are images or labels alone; give both, or none")
        names: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}
        for split in self.splits:
            images, labels = self._of(split)
            if not isinstance(images, LazyImages):
                check_images(names[split], images)
            check_labels(names[split], labels, len(images), len(self.class_names))
            if images.shape[1:] != self.train_images.shape[1:]:
                raise UserError(
                    f"training images have shape {self.train_images.shape[1:]}, {names[split]} images "
                    f"{images.shape[1:]}; make them equally large"
                )

    @property
    def has_validation(self) -> bool:
        """Whether there are images for validation."""
        return self.val_images is not None

    @property
    def channels(self) -> int:
        """Number of channels of the stored images."""
        return self.train_images.shape[1] if self.train_images.ndim == 4 else 1

    @cached_property
    def mean_and_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What images between 0 and 1 are normalised by; each (1, C, 1, 1)."""
        if self.normalisation is not None:
            given = (self.normalisation.mean, self.normalisation.std)
            mean, std = (torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1) for values in given)
            return mean, std
        if isinstance(self.train_images, LazyImages):
            raise UserError("images that are not kept in memory need a normalisation; give their mean and deviation")
        # A histogram keeps this exact, hence equal on every machine, and needs no float copy of the images.
        images = self.train_images if self.train_images.ndim == 4 else self.train_images[:, None]
        counts = np.stack([np.bincount(images[:, c].ravel(), minlength=256) for c in range(images.shape[1])])
        levels = np.arange(256) / 255
        share = counts / counts.sum(axis=1, keepdims=True)
        mean = share @ levels
        std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))
        std[std == 0] = 1.0  # images of one colour: nothing to scale

        def per_channel(values: npt.NDArray[np.float64]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)

        return per_channel(mean), per_channel(std)

    def count(self, split: Split) -> int:
        """Number of images of a split."""
        return len(self._of(split)[0])

    def batch(
        self, split: Split, indices: Indices, crops: npt.NDArray[np.float64] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Some images as bytes (n, C, H, W), and their labels (n,) as int64; without those that cannot be decoded.

        Parameters
        ----------
        crops
            As in `LazyImages.read`; images in memory are always given whole.
        """
        images, labels = self._of(split)
        chosen = positions(indices, len(images))
        if isinstance(images, LazyImages):
            picked, good = images.read(chosen, crops)
            picked, chosen = picked[good], chosen[good]
        else:
            picked = images[chosen] if images.ndim == 4 else images[chosen][:, None]
        return torch.from_numpy(picked), torch.from_numpy(labels[chosen].astype(np.int64))

    def stored(self, split: Split, indices: Indices) -> tuple[Tensors, torch.Tensor]:
        """See `batch`."""
        images, labels = self.batch(split, indices)
        return (images,), labels

    def prepared(self, stored: Tensors, inputs: Inputs) -> Tensors:
        """See `normalise`; raises UserError also if the network takes something else than one image."""
        if inputs.image is None:
            raise UserError(f"the network takes {inputs.text}, and these are images; give --data npz:FILE")
        return (self.normalise(stored[0], inputs.image),)

    @property
    def crops_are_random(self) -> bool:
        """Whether training takes random parts of the images when it reads them, instead of shifting them."""
        return isinstance(self.train_images, LazyImages)

    def limited(self, limit: int) -> LabelledImages:
        """At most so many images of each split, spread over it."""
        kept: dict[str, Any] = {}
        for split in self.splits:
            images, labels = self._of(split)
            chosen = self.spread(split, limit)
            picked = SomeImages(images, chosen) if isinstance(images, LazyImages) else images[chosen]
            kept[f"{split}_images"] = picked
            kept[f"{split}_labels"] = labels[chosen]
        # Unlike the images, what they are normalised by must not depend on how many are taken.
        mean, std = (tuple(values.flatten().tolist()) for values in self.mean_and_std)
        return replace(self, normalisation=Normalisation(mean, std), **kept)

    def _of(self, split: Split) -> tuple[Bytes | LazyImages, Labels]:
        if split == "val":
            assert self.val_images is not None
            assert self.val_labels is not None
            return self.val_images, self.val_labels
        return (self.train_images, self.train_labels) if split == "train" else (self.test_images, self.test_labels)

    def normalise(self, images: torch.Tensor, input_shape: InputShape) -> torch.Tensor:
        """Bytes (n, C, h, w) to float32 network inputs (n, *input_shape).

        Bilinear resize (anti-aliased when shrinking), normalised by `mean_and_std`, grey repeated to as many
        channels as the network takes.

        Raises
        ------
        UserError : colour images meet a network with another number of channels.
        """
        channels, height, width = input_shape
        if images.shape[1] not in (1, channels):
            raise UserError(
                f"the images have {images.shape[1]} channels and the network takes {channels}; "
                "give grey images or as many channels as it takes"
            )
        mean, std = (v.to(images.device) for v in self.mean_and_std)
        result = images.float().div_(255.0)
        if images.shape[2:] != (height, width):
            shrinks = height < images.shape[2] or width < images.shape[3]
            result = F.interpolate(result, size=(height, width), mode="bilinear", antialias=shrinks)
        if mean.numel() > result.shape[1]:  # grey, and each colour has a mean of its own
            result = result.repeat(1, mean.numel(), 1, 1)
        return result.sub_(mean).div_(std).expand(-1, channels, -1, -1)

    def tensors(self, split: Split, input_shape: InputShape, indices: Indices | None = None) -> torch.Tensor:
        """Network inputs (n, *input_shape), float32, of the images at `indices` (None: the whole split).

        Raises
        ------
        UserError : none of them can be read.
        """
        return self.inputs(split, Inputs.of(input_shape), indices)[0]


def load_embedded() -> LabelledImages:
    """Fashion-MNIST as shipped with the package: 10,000 training and 2,000 test images, grey, 28 x 28.

    Each of the ten classes has the same number of images. They are in class order: take a part of them by
    `LabelledImages.spread`, not from the front.

    Raises
    ------
    UserError : the file is missing or damaged.
    """
    source = resources.files("aap_hw").joinpath("data", EMBEDDED_FILE)
    try:
        content = lzma.decompress(source.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise UserError(f"cannot read the embedded images {source}: {error}; install the package again") from error
    if hashlib.sha256(content).hexdigest() != EMBEDDED_SHA256:
        raise UserError(f"the embedded images {source} are damaged (checksum differs); install the package again")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return LabelledImages(
            train_images=arrays["train_images"],
            train_labels=arrays["train_labels"].astype(np.int64),
            test_images=arrays["test_images"],
            test_labels=arrays["test_labels"].astype(np.int64),
            class_names=CLASS_NAMES,
        )
