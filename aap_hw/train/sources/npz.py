"""A NumPy archive of samples: labelled images, such as those of MedMNIST, or arrays of any shape (`arrays`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aap_hw.errors import UserError
from aap_hw.inputs import Inputs
from aap_hw.train.arrays import Array, ArraySamples
from aap_hw.train.data import LabelledImages, Normalisation
from aap_hw.train.sources.archive import held, opened
from aap_hw.train.sources.arrays import LABELS, array_of, name_of, samples_of, splits_of
from aap_hw.train.sources.labels import class_numbers, names_of

USUAL_CHANNELS = (1, 3, 4)


def load_npz(path: Path, inputs: Inputs) -> LabelledImages | ArraySamples:
    """The samples of an .npz file for a network; see `images_in` and `arrays.samples_of`.

    Raises
    ------
    UserError : the file is missing, damaged, lacks something or holds something else under its name.
    """
    with opened(path, "images" if inputs.image else "samples") as archive:
        return named_samples(archive, inputs, path)


def named_samples(arrays: Mapping[str, Any], inputs: Inputs, where: object) -> LabelledImages | ArraySamples:
    """The samples of a network among some arrays; bytes for a network of one image are images."""
    if inputs.image is None:
        return samples_of(arrays, inputs, str(where))
    stem = next((stem for stem in ("images", "x") if name_of(arrays, "train", (stem,)) is not None), "images")
    first = name_of(arrays, "train", (stem,))
    if stem == "x" and first is not None and array_of(arrays[first], f"{first} of {where}").dtype != np.uint8:
        return samples_of(arrays, inputs, str(where))
    return images_in(arrays, stem, inputs.image[0], where)


def images_in(arrays: Mapping[str, Any], stem: str, channels: int, where: object) -> LabelledImages:
    """``train_images``, ``train_labels``, ``test_images`` and ``test_labels`` among some arrays, and ``val_images`` and
    ``val_labels`` if there are any.

    Images are bytes (N, H, W), (N, C, H, W) or (N, H, W, C); labels (N,) or (N, 1). ``class_names`` may name the
    classes, and ``mean`` and ``std`` the normalisation of images between 0 and 1, one number a channel each. Nothing is
    unpickled.

    Parameters
    ----------
    stem
        What the images are called: ``images``, or ``x`` as Keras's archives have it.
    channels
        That the network takes: tells images with channels last if there are neither 1, 3 nor 4.
    """
    splits = splits_of(arrays, (stem,))
    images = {split: name_of(arrays, split, (stem,)) for split in splits}
    labels = {split: name_of(arrays, split, LABELS) for split in splits}
    needed = {
        f"{split}_{what}": found[split] for split in splits for what, found in (("images", images), ("labels", labels))
    }
    if missing := [name for name, found in needed.items() if found is None]:
        raise UserError(f"{where} lacks {', '.join(missing)} (it holds {held(arrays)}); name its arrays like that")

    def array(name: str | None) -> Array:
        return array_of(arrays[str(name)], f"{name} of {where}")

    planes = {split: _planes(array(images[split]), channels) for split in splits}
    numbers = [class_numbers(array(labels[split]), f"{labels[split]} of {where}") for split in splits]
    names = names_of(arrays, numbers, where)
    of = dict(zip(splits, numbers, strict=True))
    return LabelledImages(
        planes["train"],
        of["train"],
        planes["test"],
        of["test"],
        names,
        _normalisation(arrays, where),
        planes.get("val"),
        of.get("val"),
    )


def _planes(images: np.ndarray[Any, Any], channels: int) -> np.ndarray[Any, Any]:
    """Channels before rows, where they come last."""
    if images.ndim == 4:
        first, last = images.shape[1], images.shape[3]
        likely = (channels, *USUAL_CHANNELS)
        if first != channels and (last == channels or (first not in likely and last in likely)):
            images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images)


def _normalisation(arrays: Mapping[str, Any], where: object) -> Normalisation | None:
    if "mean" not in arrays and "std" not in arrays:
        return None
    if not ("mean" in arrays and "std" in arrays):
        raise UserError(f"{where} has one of 'mean' and 'std' and lacks the other; give both, or none")
    try:
        mean, std = (
            tuple(float(value) for value in array_of(arrays[name], f"{name} of {where}").ravel())
            for name in ("mean", "std")
        )
    except (TypeError, ValueError) as problem:
        raise UserError(f"'mean' and 'std' of {where} are not numbers; give one a channel each") from problem
    return Normalisation(mean, std)
