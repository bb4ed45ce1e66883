"""Which notes of a pickle are tensors: all ways in which PyTorch has saved one since 2016, and NumPy's arrays.

Covers every tensor with plain numbers behind it. Other tensors (quantized, sparse, distributed, without numbers) are
only recognised, so that they can be refused by name.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aap_hw.models.checkpoints import files
from aap_hw.models.checkpoints.pickled import Made, Named
from aap_hw.models.checkpoints.storages import Damaged, Storage, dtype_named

_UTILS = "torch._utils"
# Functions that only wrap a tensor, which is their first argument.
_WRAPPERS = (
    (_UTILS, "_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_xla_tensor"),
    (_UTILS, "_rebuild_device_tensor_from_numpy", "_rebuild_device_tensor_from_cpu_tensor"),
    ("torch.nn.parameter", "Parameter", "Buffer"),
    ("torch.autograd.variable", "Variable"),
)
_WITHOUT_NUMBERS = {
    "_rebuild_qtensor": "quantized",
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_meta_tensor_no_storage": "without numbers, as it was saved from the device 'meta'",
    "_rebuild_wrapper_subclass": "of a class of its own, not plain numbers",
}
_ARRAYS = ("numpy.core", "numpy._core")


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint, not read yet.

    Attributes
    ----------
    obstacle : why it cannot be read, as the end of a sentence that begins "it is"; empty if it can.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]
    obstacle: str = ""


def tensor_of(value: Any) -> Stored | None:
    """The value as a tensor; None if it is not one. Raises Damaged if it claims to be one and cannot be."""
    if isinstance(value, torch.Tensor):
        return Stored(tuple(value.shape), value.dtype, lambda: value)
    if not isinstance(value, Made) or not isinstance(value.by, Named):
        return None
    if any(value.is_of(*names) for names in _WRAPPERS) and value.arguments:
        return tensor_of(value.arguments[0])
    if value.is_of("torch._tensor", "_rebuild_from_type_v2", "_rebuild_from_type"):
        by, _, arguments, *_ = value.arguments
        return tensor_of(Made(by, arguments))
    if value.by.module == _UTILS and value.by.name in _WITHOUT_NUMBERS:
        return Stored((), torch.float32, _refuse, _WITHOUT_NUMBERS[value.by.name])
    if value.is_of(_UTILS, "_rebuild_tensor", "_rebuild_tensor_v2"):
        storage, *where = value.arguments[:4]
        return _strided(storage, where, None)
    if value.is_of(_UTILS, "_rebuild_tensor_v3"):
        storage, *where = value.arguments[:4]
        return _strided(storage, where, dtype_named(value.arguments[6].name))
    return _array_of(value)


def _refuse() -> torch.Tensor:
    raise Damaged("a tensor without plain numbers was asked for")


def _strided(storage: Any, where: list[Any], dtype: torch.dtype | None) -> Stored:
    if isinstance(storage, Made) and storage.is_of("torch.storage", "_load_from_bytes"):
        # How a tensor gets into a pickle that torch.save did not write.
        storage = files.content_of_stream(io.BytesIO(_bytes(storage.arguments[0])), "inside the file")
    if not isinstance(storage, Storage):
        raise Damaged("a tensor has no numbers")
    numbers, (first, shape, strides) = storage, where
    if isinstance(shape, Made) and shape.is_of("torch", "Size"):
        (shape,) = shape.arguments
    of = dtype or numbers.dtype
    return Stored(tuple(shape), of, lambda: numbers.view(of, first, shape, strides))


def _array_of(value: Made) -> Stored | None:
    match value:
        case Made(by=Named(name="_reconstruct"), state=(_, tuple(shape), Made() as dtype, fortran, content)):
            order = "F" if fortran else "C"
        case Made(by=Named(name="_frombuffer"), arguments=(content, Made() as dtype, tuple(shape), order)):
            pass
        case _:
            return None
    if not str(value.by).startswith(_ARRAYS):
        return None
    match dtype:
        case Made(arguments=(str(code), *_), state=(_, str(byte_order), *_)) if re.fullmatch(
            "f[248]|[iu][1248]|b1", code
        ):
            kind, in_file = np.dtype(code), np.dtype(f"{'>' if byte_order == '>' else '<'}{code}")
        case _:
            return None  # of texts or objects

    def read() -> torch.Tensor:
        numbers = np.frombuffer(_bytes(content), in_file)
        return torch.from_numpy(numbers.reshape(shape, order="F" if order == "F" else "C").astype(kind))

    return Stored(shape, torch.from_numpy(np.empty(0, kind)).dtype, read)


def _bytes(content: Any) -> bytes | bytearray:
    if isinstance(content, Made) and content.is_of("_codecs", "encode"):
        content = content.arguments[0]  # as pickle's protocols before 3 hold bytes
    return content.encode("latin-1") if isinstance(content, str) else bytes(content)
