"""Real samples of a network's inputs, which ``--example`` gives; shapes, types and names are taken from them.

=========================  =================================================================================
``FILE.npz``               arrays, samples along their first axes; one alone, or several named as ``forward``
                           names its parameters
``FILE.py:function``       a function, called without arguments, that returns a tensor, several, or a dictionary
``MODULE:function``        the same in a module that Python can import
=========================  =================================================================================

They have no labels, so nothing is trained on them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aap_hw.errors import UserError
from aap_hw.inputs import TYPES, Given, Input, Inputs
from aap_hw.train.arrays import Array, ArraySamples, fitted
from aap_hw.train.sources.archive import opened
from aap_hw.train.sources.arrays import array_of
from aap_hw.users_code import loaded, named_in, told


@dataclass(frozen=True)
class Example:
    """Samples, and the inputs of a network that takes them."""

    inputs: Inputs
    samples: ArraySamples

    @classmethod
    def read(cls, text: str) -> Example:
        """The samples that a text names, see above; code that it names is run.

        Raises
        ------
        UserError : there are none, or of a type that no network takes.
        """
        place, _, function = text.rpartition(":")
        if text.endswith(".npz"):
            with opened(Path(text), "example") as archive:
                return cls.of(dict(archive), text)
        if not (place and function):
            raise UserError(
                f"'{text}' is not an example of inputs: write FILE.npz, FILE.py:FUNCTION or MODULE:FUNCTION"
            )
        return cls.of(_returned(place, function, text), text)

    @classmethod
    def of(cls, value: object, where: str) -> Example:
        """The samples that a file held or a function returned; ``where`` is what a sentence calls them."""
        if isinstance(value, Mapping):
            named = [(str(name), each) for name, each in value.items()]
        else:
            parts = value if isinstance(value, (tuple, list)) else (value,)
            named = [(f"arr_{place}", each) for place, each in enumerate(parts)]
        if not named:
            raise UserError(f"{where} holds no arrays; give one for each input of the network")
        arrays = [array_of(each, f"{name} of {where}" if len(named) > 1 else where) for name, each in named]
        # One array needs no name; those that NumPy has numbered are in the order of the parameters.
        unnamed = len(named) == 1 or all(re.fullmatch(r"arr_\d+", name) for name, _ in named)
        inputs = Inputs(
            tuple(
                _input(array, None if unnamed else name, f"{name} of {where}")
                for (name, _), array in zip(named, arrays, strict=True)
            )
        )
        if len({len(array) for array in arrays}) > 1:
            raise UserError(f"the arrays of {where} differ in length; the first axis of each counts the same samples")
        samples = tuple(
            fitted(array, one, f"{name} of {where}")
            for (name, _), array, one in zip(named, arrays, inputs.each, strict=True)
        )
        return cls(inputs, ArraySamples(samples, samples))


def inputs_given(inputs: Given | None, example: str | None) -> Inputs | None:
    """The inputs given by ``--input`` or ``--example``; None if neither was given.

    Raises
    ------
    UserError : both were given, or there is no such example.
    """
    if inputs is not None and example is not None:
        raise UserError("--example says what the network takes; leave --input out")
    if example is not None:
        return Example.read(example).inputs
    return None if inputs is None else Inputs.of(inputs)


def _input(array: Array, name: str | None, what: str) -> Input:
    if array.ndim == 0 or not len(array):
        raise UserError(f"{what} holds no samples; its first axis counts them")
    if array.dtype.kind not in "fiub":
        raise UserError(f"{what} is of type {array.dtype}; give numbers")
    dtype = "float32" if array.dtype.kind == "f" else array.dtype.name
    return Input(array.shape[1:], dtype if dtype in TYPES else "int64", name)


def _returned(place: str, function: str, text: str) -> Any:
    """What a function of the user's returns."""
    if place.endswith(".py") and not Path(place).is_file():
        raise UserError(f"there is no file {place} for the example; a relative path starts from {Path.cwd()}")
    with loaded(place, f"cannot run {place} for the example") as module:
        found = named_in(module, function, place)
        if not callable(found):
            raise UserError(f"{text} is not a function; name one that takes no arguments and returns arrays")
        with told(f"{text} failed", "it is called without arguments"):
            return found()
