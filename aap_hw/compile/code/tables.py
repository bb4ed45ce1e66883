"""Functions of one byte as tables: for each of its 256 numbers, what a kernel makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from aap_hw.compile.code.quantized import LARGEST, Quantized
from aap_hw.compile.families.elementwise import ACTIVATIONS
from aap_hw.compile.keys.key import KernelKey

ENTRIES = LARGEST + 1


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(x, -700, 700)))


def _hardsigmoid(x: Any) -> Any:
    return np.clip(x + 3, 0, 6) / 6


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda x: x * _hardsigmoid(x),
}
"""The activations in float64."""
assert FUNCTIONS.keys() == set(ACTIVATIONS)


def table_of(key: KernelKey, model: Quantized) -> np.ndarray:
    """The table of an activation and its epilogue, in the type that it makes, computed in float64."""
    (read,) = model.read
    values: np.ndarray = read.scale * (np.arange(ENTRIES, dtype=np.float64) - read.zero_point)
    for name in (key.op, *key.epilogue):
        values = FUNCTIONS[name](values)
    if model.made is None:
        return values.astype(np.float32)
    numbers: np.ndarray = np.clip(np.rint(values / model.made.scale) + model.made.zero_point, 0, LARGEST)
    return numbers.astype(np.uint8)
