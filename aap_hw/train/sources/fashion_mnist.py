"""Fashion-MNIST, or any other data set in MNIST's four files, from a folder of the user's."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from aap_hw.errors import UserError
from aap_hw.foreign import reason
from aap_hw.train.data import CLASS_NAMES, Bytes, LabelledImages, Labels

HOW_TO_GET = (
    "add --download, or install Debian's package dataset-fashion-mnist and give /usr/share/datasets/fashion-mnist"
)
BYTES = b"\0\0\x08"


def load_fashion_mnist(folder: Path, *, download: bool = False) -> LabelledImages:
    """The 60,000 training and 10,000 test images, grey, 28 x 28.

    Parameters
    ----------
    folder
        Holds the four IDX files, packed or not, or ``FashionMNIST/raw`` with them, as torchvision lays it out.
    download
        Let torchvision fetch them if they are not there.

    Raises
    ------
    UserError : the files are missing, damaged or cannot be fetched.
    """
    inner = folder / "FashionMNIST" / "raw"
    if download and not inner.is_dir() and _find(folder, "train-images-idx3-ubyte") is None:
        _download(folder)
    files = inner if inner.is_dir() else folder
    train, test = (_split(files, prefix) for prefix in ("train", "t10k"))
    return LabelledImages(*train, *test, CLASS_NAMES)


def read_idx(path: Path) -> Bytes:
    """An IDX file of bytes, packed with gzip or not: two zeros, type 8, number of axes, the axes, the data.

    Raises
    ------
    UserError : it is missing, damaged or of another type.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as problem:
        raise UserError(f"cannot read {path}: {problem}; {HOW_TO_GET}") from problem
    if data[:3] != BYTES or len(data) < 4 or len(data) < 4 + 4 * data[3]:
        raise UserError(f"{path} is not an IDX file of bytes; {HOW_TO_GET}")
    axes = np.frombuffer(data, ">u4", count=data[3], offset=4).tolist()
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * len(axes))
    if len(values) != math.prod(axes):
        raise UserError(f"{path} is damaged: it has {len(values)} values instead of {math.prod(axes)}; {HOW_TO_GET}")
    return values.reshape(axes)


def _split(folder: Path, prefix: str) -> tuple[Bytes, Labels]:
    found = [_find(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    if None in found:
        raise UserError(f"there is no Fashion-MNIST in {folder}: {prefix}-images-idx3-ubyte is missing; {HOW_TO_GET}")
    images, labels = (read_idx(path) for path in found if path is not None)
    # A copy: what was read from a file is read-only, which torch does not want to share.
    return images.copy(), labels.astype(np.int64)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)


def _download(folder: Path) -> None:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(folder), download=True)
    except (OSError, RuntimeError) as problem:
        raise UserError(f"cannot download Fashion-MNIST to {folder}: {reason(problem)}; {HOW_TO_GET}") from problem
