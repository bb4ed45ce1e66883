"""What arrays must be like to be labelled images, and how to make them so where that can be told.

Covers arrays only; whether the images fit a network is decided where both are known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from aap_hw.errors import UserError

AS_BYTES = "give bytes (uint8) of shape (N, H, W) or (N, C, H, W)"


def check_images(split: str, images: Any) -> None:
    """Raise UserError unless these are bytes of shape (N, H, W) or (N, C, H, W)."""
    if not isinstance(images, np.ndarray):
        raise UserError(f"the {split} images are a {type(images).__name__}; give a NumPy array of bytes (uint8)")
    if images.ndim not in (3, 4):
        raise UserError(f"the {split} images are {images.dtype.name} of shape {images.shape}; {AS_BYTES}")
    if images.dtype != np.uint8:
        raise UserError(f"the {split} images are {images.dtype.name}{_to_bytes(images)}")


def check_labels(split: str, labels: Any, count: int, classes: int) -> None:
    """Raise UserError unless these are class numbers from 0, one for each image, and there are any."""
    if not isinstance(labels, np.ndarray):
        raise UserError(f"the {split} labels are a {type(labels).__name__}; give a NumPy array of whole numbers")
    if labels.shape != (count,):
        raise UserError(
            f"there are {count} {split} images but labels of shape {labels.shape}; {one_number_each(labels)}"
        )
    if not count:
        raise UserError(f"there is not one image in the {split} split; nothing can be learnt or judged without any")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"the {split} labels are {labels.dtype.name}; {one_number_each(labels)}")
    if not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(
            f"the {split} labels run from {labels.min()} to {labels.max()}, but there are {classes} classes; "
            "number them from 0"
        )


def one_number_each(labels: npt.NDArray[Any]) -> str:
    """What to give instead of labels that are not numbers of classes, one for each image."""
    advice = "give one whole number an image"
    if labels.ndim == 2 and labels.shape[1] > 1:
        return f"{advice}, such as labels.argmax(1) of one-hot ones"
    if labels.dtype.kind in "US":
        return f"{advice}, such as numpy.unique(labels, return_inverse=True)[1] of names"
    are_whole = labels.dtype.kind == "b" or (labels.dtype.kind == "f" and np.array_equal(labels, labels.round()))
    return f"{advice}, such as labels.astype('int64')" if are_whole else advice


def _to_bytes(images: npt.NDArray[Any]) -> str:
    """What images of another type hold, and what makes bytes of it."""
    if not np.issubdtype(images.dtype, np.number) or np.issubdtype(images.dtype, np.complexfloating):
        return f"; {AS_BYTES}"
    least, most = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    if not np.isfinite([least, most]).all():
        return f", and some pixels are not finite numbers; {AS_BYTES}"
    found = f" from {least:.6g} to {most:.6g}"
    if least < 0:
        return f"{found}, as if normalised; {AS_BYTES} from before that, and the mean and deviation beside them"
    if most > 255:
        how = (
            "(images / 257).round()"
            if images.dtype.name == "uint16" and most > 4095
            else "(images / images.max() * 255).round()"
        )
    else:
        how = "(images * 255).round()" if most <= 1 and images.dtype.kind == "f" else "images"
    return f"{found}; {AS_BYTES}, such as {how}.astype('uint8')"
