"""Labelled images held as bytes, and turned into normalised network inputs a batch at a time.

Covers the embedded Fashion-MNIST subset and any other set of small images in the same form. It does not
augment (that is part of the training loop) and does not read image folders.
"""

from __future__ import annotations

import hashlib
import io
import lzma
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from aap_hw.errors import UserError

Split = Literal["train", "test"]
InputShape = tuple[int, int, int]
Indices = torch.Tensor | npt.NDArray[np.integer] | list[int] | range | slice
Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

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


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """A training and a test set of equally large images.

    Parameters
    ----------
    train_images, test_images
        Bytes of shape (N, H, W) for grey images, or (N, C, H, W).
    train_labels, test_labels
        Class numbers of shape (N,), from 0 to ``len(class_names) - 1``.
    class_names
        One name per class.

    Raises
    ------
    UserError
        If images and labels do not belong together.
    """

    train_images: Bytes
    train_labels: Labels
    test_images: Bytes
    test_labels: Labels
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for split, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if images.dtype != np.uint8 or images.ndim not in (3, 4):
                raise UserError(
                    f"the {split} images are {images.dtype} of shape {images.shape}; give bytes (uint8) of "
                    "shape (N, H, W) or (N, C, H, W)"
                )
            if labels.shape != images.shape[:1]:
                raise UserError(
                    f"there are {len(images)} {split} images but labels of shape {labels.shape}; "
                    "give one label an image"
                )
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names):
                raise UserError(
                    f"the {split} labels run from {labels.min()} to {labels.max()}, but there are "
                    f"{len(self.class_names)} classes; number them from 0"
                )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise UserError(
                f"training images have shape {self.train_images.shape[1:]}, test images "
                f"{self.test_images.shape[1:]}; make them equally large"
            )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @cached_property
    def mean_and_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the training pixels per channel, as fractions of 255; each (1, C, 1, 1)."""
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

    def raw(self, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        """Images as a uint8 tensor (N, C, H, W) sharing the array's memory, and labels (N,) as int64."""
        images, labels = (
            (self.train_images, self.train_labels) if split == "train" else (self.test_images, self.test_labels)
        )
        if images.ndim == 3:
            images = images[:, None]
        return torch.from_numpy(images), torch.from_numpy(labels)

    def spread(self, split: Split, count: int) -> npt.NDArray[np.int64]:
        """Positions of `count` images (at most all of the split), evenly spaced over its order.

        Of images in class order, such as the embedded ones, this is the same number of each class, or nearly.

        Raises
        ------
        UserError
            If `count` is not positive.
        """
        if count < 1:
            raise UserError(f"{count} images were asked for; ask for at least 1")
        total = len(self.train_images if split == "train" else self.test_images)
        count = min(count, total)
        return np.arange(count, dtype=np.int64) * total // count

    def normalise(self, images: torch.Tensor, input_shape: InputShape) -> torch.Tensor:
        """Bytes (n, C, h, w) to float32 network inputs (n, *input_shape).

        Bilinear resize (anti-aliased when shrinking), normalised by `mean_and_std`, grey repeated to as many
        channels as the network takes.

        Raises
        ------
        UserError
            If colour images meet a network with another number of channels.
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
        return result.sub_(mean).div_(std).expand(-1, channels, -1, -1)

    def tensors(self, split: Split, input_shape: InputShape, indices: Indices | None = None) -> torch.Tensor:
        """Network inputs (n, *input_shape), float32, of the images at `indices` (None: the whole split)."""
        images, _ = self.raw(split)
        if isinstance(indices, range):
            indices = list(indices)
        chosen = images if indices is None else images[indices]
        return self.normalise(chosen, input_shape).contiguous()


def load_embedded() -> LabelledImages:
    """Fashion-MNIST as shipped with the package: 10,000 training and 2,000 test images, grey, 28 x 28.

    Each of the ten classes has the same number of images. They are in class order: take a part of them by
    `LabelledImages.spread`, not from the front.

    Raises
    ------
    UserError
        If the file is missing or damaged.
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
