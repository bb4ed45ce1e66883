"""A compiled library that is loaded: how its functions are given inputs, called and timed.

The same on this machine and through an RPC session; only TVM's run time is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tvm
from tvm.runtime.vm import VirtualMachine

# The function of a library that is a whole network.
NETWORK = "main"


def made_up(shapes: Sequence[Sequence[int]], types: Sequence[str]) -> list[np.ndarray]:
    """The same arguments each time: numbers from 0 to 1, or all that a byte can be."""
    random = np.random.default_rng(0)
    return [_random(random, tuple(shape), type_) for shape, type_ in zip(shapes, types, strict=True)]


def _random(random: np.random.Generator, shape: tuple[int, ...], type_: str) -> np.ndarray:
    if np.dtype(type_).itemsize == 1:
        return random.integers(0, 256, shape, dtype=np.uint8).view(type_)
    return random.random(shape, dtype=np.float32).astype(type_)


class LoadedLibrary(Protocol):
    """A compiled library on a device."""

    def set_inputs(self, function: str, inputs: Sequence[np.ndarray]) -> None:
        """Upload the arguments that ``run`` and ``time_us`` use; bytes only where the library takes bytes."""

    def run(self, function: str) -> list[np.ndarray]:
        """Call once and fetch the outputs."""

    def time_us(self, function: str, number: int, repeats: int) -> list[float]:
        """Mean microseconds a call of ``repeats`` samples of ``number`` calls each."""


class LoadedModule:
    """A library in TVM's virtual machine, in this process or behind an RPC session."""

    def __init__(self, module: Any, device: Any) -> None:
        self._machine, self._device = VirtualMachine(module, device), device

    def set_inputs(self, function: str, inputs: Sequence[np.ndarray]) -> None:
        """Upload the arguments that ``run`` and ``time_us`` use; a network takes bytes as they are."""
        # Between a network's kernels, and so at its border too, whole numbers and truth values are carried as float32,
        # but for bytes of networks that take them. A kernel on its own takes arrays of its types.
        arrays = [
            np.ascontiguousarray(each, None if function != NETWORK or each.dtype == np.uint8 else np.float32)
            for each in inputs
        ]
        self._machine.set_input(function, *[tvm.runtime.tensor(array, self._device) for array in arrays])

    def run(self, function: str) -> list[np.ndarray]:
        """Call once and fetch the outputs."""
        self._machine.invoke_stateful(function)
        outputs = self._machine.get_outputs(function)
        return [each.numpy() for each in (outputs if isinstance(outputs, tuple) else (outputs,))]

    def time_us(self, function: str, number: int, repeats: int) -> list[float]:
        """Mean microseconds a call of ``repeats`` samples of ``number`` calls each."""
        evaluator = self._machine.time_evaluator("invoke_stateful", self._device, number=number, repeat=repeats)
        return [seconds * 1e6 for seconds in evaluator(function).results]
