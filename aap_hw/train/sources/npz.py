"""A NumPy archive of labelled images, such as those of MedMNIST."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from aap_hw.errors import UserError
from aap_hw.train.checks import one_number_each
from aap_hw.train.data import LabelledImages, Labels, Normalisation

NEEDED = ("train_images", "train_labels", "test_images", "test_labels")
USUAL_CHANNELS = (1, 3, 4)
# More are not numbers of classes but of something else.
MOST_CLASSES = 1 << 20
# What a damaged archive or array may raise; encrypted ones, too.
DAMAGE = (OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error)
ADVICE = "give an .npz file of plain arrays of numbers"


def load_npz(path: Path, channels: int) -> LabelledImages:
    """``train_images``, ``train_labels``, ``test_images`` and ``test_labels`` of an .npz file.

    Images are bytes (N, H, W), (N, C, H, W) or (N, H, W, C); labels (N,) or (N, 1). ``class_names`` may name the
    classes, and ``mean`` and ``std`` the normalisation of images between 0 and 1, one number a channel each. Nothing is
    unpickled.

    Parameters
    ----------
    channels
        That the network takes: tells images with channels last if there are neither 1, 3 nor 4.

    Raises
    ------
    UserError
        If the file is missing, damaged, lacks one of these or holds something else under its name.
    """
    arrays = _read(path)
    train, test = (_planes(arrays[name], channels) for name in ("train_images", "test_images"))
    train_labels, test_labels = (_labels(arrays[name], path, name) for name in ("train_labels", "test_labels"))
    if "class_names" in arrays:
        names = tuple(map(str, arrays["class_names"].ravel()))
    else:
        names = _numbered(np.concatenate([train_labels, test_labels]), path)
    return LabelledImages(train, train_labels, test, test_labels, names, _normalisation(arrays, path))


def _read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        archive = np.load(path, allow_pickle=False)
    except DAMAGE as problem:
        why = getattr(problem, "strerror", None) or "it is no .npz file, or cut short"
        raise UserError(f"cannot read the images {path}: {why}; {ADVICE}") from problem
    if not isinstance(archive, NpzFile):
        raise UserError(f"{path} is one array and not an archive of several; {ADVICE}")
    with archive:
        if missing := [name for name in NEEDED if name not in archive]:
            held = ", ".join(list(archive)[:8]) or "nothing"
            raise UserError(f"{path} lacks {', '.join(missing)} (it holds {held}); name its arrays so")
        return {
            name: _array(archive, name, path) for name in (*NEEDED, "class_names", "mean", "std") if name in archive
        }


def _array(archive: NpzFile, name: str, path: Path) -> np.ndarray[Any, Any]:
    try:
        array = archive[name]
    except DAMAGE as problem:
        why = "is made of Python objects, which could run code" if "Object arrays" in str(problem) else "is damaged"
        raise UserError(f"{name} of {path} {why}; {ADVICE}") from problem
    if not isinstance(array, np.ndarray):
        raise UserError(f"{name} of {path} is not an array; {ADVICE}")
    return array


def _planes(images: np.ndarray[Any, Any], channels: int) -> np.ndarray[Any, Any]:
    """Channels before rows, where they come last."""
    if images.ndim == 4:
        first, last = images.shape[1], images.shape[3]
        likely = (channels, *USUAL_CHANNELS)
        if first != channels and (last == channels or (first not in likely and last in likely)):
            images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images)


def _labels(labels: np.ndarray[Any, Any], path: Path, name: str) -> Labels:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{name} of {path} is {labels.dtype.name} of shape {labels.shape}; {one_number_each(labels)}")
    return labels.astype(np.int64)


def _numbered(labels: Labels, path: Path) -> tuple[str, ...]:
    """Classes without names: as many as the labels tell."""
    least, most = int(labels.min(initial=0)), int(labels.max(initial=0))
    if len(labels) and labels.min() > 0:
        raise UserError(
            f"the labels of {path} run from {labels.min()} to {most} and none is 0; number classes from 0, such as "
            "labels - 1, or name all of them in 'class_names'"
        )
    if least < 0 or most >= MOST_CLASSES:
        raise UserError(f"the labels of {path} run from {least} to {most}; number classes from 0, one after the other")
    return tuple(map(str, range(most + 1)))


def _normalisation(arrays: dict[str, np.ndarray[Any, Any]], path: Path) -> Normalisation | None:
    if "mean" not in arrays and "std" not in arrays:
        return None
    if not ("mean" in arrays and "std" in arrays):
        raise UserError(f"{path} has one of 'mean' and 'std' and lacks the other; give both, or none")
    try:
        mean, std = (tuple(float(value) for value in arrays[name].ravel()) for name in ("mean", "std"))
    except (TypeError, ValueError) as problem:
        raise UserError(f"'mean' and 'std' of {path} are not numbers; give one a channel each") from problem
    return Normalisation(mean, std)
