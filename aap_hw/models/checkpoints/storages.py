"""Storages of a checkpoint: runs of numbers, of which tensors are views. Read when needed, never beyond their end.

Covers every type of number that PyTorch saves. Not covered: where in a file the bytes are; see `files`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

# Names that a pickle may use for types.
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_OF_STORAGE = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "UntypedStorage": torch.uint8,
}


class Damaged(ValueError):  # noqa: N818 - what it reports is the damage
    """A file contradicts itself; the message says how."""


def dtype_named(name: str) -> torch.dtype:
    """The type of this name, such as ``float32``. Raises Damaged if there is none."""
    if name not in _DTYPES:
        raise Damaged(f"it holds numbers of an unknown type, {name}")
    return _DTYPES[name]


class Storage:
    """Numbers of one type, one after the other.

    Parameters
    ----------
    kind
        The name of PyTorch's class for them, such as ``FloatStorage``.
    count
        How many there are, according to the file.
    load
        Reads their bytes.
    """

    def __init__(self, kind: str, count: Any, load: Callable[[], bytes | bytearray]) -> None:
        if kind not in _OF_STORAGE:
            raise Damaged(f"it holds numbers of an unknown type, {kind}")
        self.dtype = _OF_STORAGE[kind]
        self._size, self._load = _whole(count) * self.dtype.itemsize, load

    @cached_property
    def _bytes(self) -> torch.Tensor:
        content = self._load()
        if len(content) != self._size:
            raise Damaged(f"{len(content)} bytes of numbers are there instead of {self._size}")
        return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)

    def part(self, kind: str, first: Any, count: Any) -> Storage:
        """A storage of ``count`` of the numbers, from ``first`` on."""
        step = self.dtype.itemsize
        start = _whole(first) * step
        return Storage(kind, count, lambda: self._bytes[start : start + _whole(count) * step].numpy().tobytes())

    def view(self, dtype: torch.dtype, first: Any, shape: Sequence[Any], strides: Sequence[Any]) -> torch.Tensor:
        """A tensor of these numbers. Raises Damaged if it reaches beyond them."""
        numbers = self._bytes != 0 if dtype == torch.bool else self._bytes.view(dtype)
        shape, strides = [_whole(length) for length in shape], [_whole(stride) for stride in strides]
        if math.prod(shape) == 0:
            return numbers.new_empty(shape)
        last = _whole(first) + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if last >= len(numbers):
            raise Damaged(f"a tensor reaches to number {last} of {len(numbers)}")
        return numbers.as_strided(shape, strides, first)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise Damaged(f"a size is {value!r}"[:80])
    return value
