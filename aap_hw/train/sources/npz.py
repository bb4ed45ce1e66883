"""A NumPy archive of labelled images, such as those of MedMNIST."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from aap_hw.errors import UserError
from aap_hw.train.data import LabelledImages, Normalisation

NEEDED = ("train_images", "train_labels", "test_images", "test_labels")
COLOURS = (1, 3)


def load_npz(path: Path) -> LabelledImages:
    """``train_images``, ``train_labels``, ``test_images`` and ``test_labels`` of an .npz file.

    Images are bytes (N, H, W), (N, C, H, W) or (N, H, W, C); labels (N,) or (N, 1). ``class_names`` may name the
    classes, and ``mean`` and ``std`` the normalisation of images between 0 and 1, one number a channel each. Nothing is
    unpickled.

    Raises
    ------
    UserError
        If the file is missing, damaged, lacks one of these or holds something else under its name.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in (*NEEDED, "class_names", "mean", "std") if name in archive}
            names = list(archive)
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as problem:
        raise UserError(f"cannot read the images {path}: {problem}; give an .npz file of plain arrays") from problem
    if missing := [name for name in NEEDED if name not in arrays]:
        raise UserError(f"{path} lacks {', '.join(missing)} (it holds {', '.join(names[:8])}); name its arrays so")
    train, test = (_planes(arrays[name]) for name in ("train_images", "test_images"))
    train_labels, test_labels = (_labels(arrays[name], path, name) for name in ("train_labels", "test_labels"))
    if "class_names" in arrays:
        class_names = tuple(map(str, arrays["class_names"].ravel()))
    else:
        class_names = tuple(str(number) for number in range(int(max(train_labels.max(), test_labels.max())) + 1))
    return LabelledImages(train, train_labels, test, test_labels, class_names, _normalisation(arrays, path))


def _planes(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Channels before rows, where they come last."""
    if images.ndim == 4 and images.shape[1] not in COLOURS and images.shape[3] in COLOURS:
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images)


def _labels(labels: np.ndarray[Any, Any], path: Path, name: str) -> np.ndarray[Any, Any]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
        raise UserError(f"{name} of {path} is {labels.dtype} of shape {labels.shape}; give one whole number an image")
    return labels.astype(np.int64)


def _normalisation(arrays: dict[str, np.ndarray[Any, Any]], path: Path) -> Normalisation | None:
    if "mean" not in arrays and "std" not in arrays:
        return None
    if not ("mean" in arrays and "std" in arrays):
        raise UserError(f"{path} has one of 'mean' and 'std' and lacks the other; give both, or none")
    mean, std = (tuple(float(value) for value in arrays[name].ravel()) for name in ("mean", "std"))
    return Normalisation(mean, std)
