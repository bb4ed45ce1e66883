"""What a network takes: its inputs, each with a shape, a type and perhaps a name, and one text for all of them.

``3x224x224`` is an image, ``1x16000`` a recording of one channel, ``int64:128`` a row of whole numbers, and
``left:3x96x96,right:3x96x96`` two images for the parameters of these names. A shape is that of one sample, without the
batch axis, which comes first in every tensor. Which samples a network is shown is not decided here.

PyTorch takes a second to load and is only loaded to make tensors: whoever reads a latency table does without.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aap_hw.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from aap_hw.graph.program.inputs import Tensors

TYPES = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")
# PyTorch's others are not taken, but they are no names of inputs either.
OTHER_TYPES = frozenset(
    [
        "float64",
        "float16",
        "bfloat16",
        "float",
        "double",
        "half",
        "int",
        "long",
        "short",
        "complex64",
        "complex128",
        "uint16",
        "uint32",
        "uint64",
    ]
)
SCALAR = "scalar"
# Of one tensor. No device holds more, so it is more likely a typing error.
MOST_ELEMENTS = 1 << 31
# Made-up whole numbers are below this: most embeddings have more rows.
CEILING = 2


@dataclass(frozen=True)
class Input:
    """One tensor that a network takes.

    Attributes
    ----------
    shape : of one sample, such as (C, H, W).
    dtype : one of `TYPES`.
    name : the parameter of ``forward`` that it is given as; None gives it by its place.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    name: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in TYPES:
            raise UserError(f"an input cannot be {self.dtype}: give one of {', '.join(TYPES)}")
        if any(extent < 1 for extent in self.shape) or math.prod(self.shape) > MOST_ELEMENTS:
            raise UserError(
                f"an input cannot have the shape {self.shape}: give positive numbers, of {MOST_ELEMENTS} at most in all"
            )
        if self.name is not None and (not self.name.isidentifier() or _is_type(self.name)):
            raise UserError(f"'{self.name}' cannot be the name of an input: give that of a parameter of forward")

    @property
    def text(self) -> str:
        """Such as ``3x224x224``, ``int64:128`` or ``ids:int64:128``."""
        parts = [self.name, None if self.dtype == "float32" else self.dtype, "x".join(map(str, self.shape)) or SCALAR]
        return ":".join(part for part in parts if part is not None)

    @property
    def is_float(self) -> bool:
        """Whether it is floating point, and not whole numbers or truth values."""
        return self.dtype.startswith("float")

    @property
    def positions(self) -> int:
        """Places of one channel, the first axis where there are others: pixels of an image, moments of a recording."""
        return math.prod(self.shape[1:] or self.shape)

    @property
    def tensor_type(self) -> torch.dtype:
        """PyTorch's own record of its type."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def random(self, batch: int, generator: torch.Generator, ceiling: int = CEILING) -> Tensor:
        """A made-up batch (N, ...): normally distributed numbers, or whole ones below the ceiling."""
        import torch

        shape = batch, *self.shape
        if self.is_float:
            return torch.randn(shape, generator=generator)
        return torch.randint(ceiling, shape, generator=generator).to(self.tensor_type)


@dataclass(frozen=True)
class Inputs:
    """All tensors that a network takes; those without a name come first.

    Examples
    --------
    >>> Inputs.parse("3x32x32,mask:bool:10").text
    '3x32x32,mask:bool:10'
    """

    each: tuple[Input, ...]

    def __post_init__(self) -> None:
        names = [one.name for one in self.each if one.name is not None]
        if not self.each or any(one.name is None for one in self.each[len(self.each) - len(names) :]):
            raise UserError("inputs without a name come first, as arguments do in Python")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"the input '{twice}' is given twice")

    @classmethod
    def parse(cls, text: str) -> Inputs:
        """The inputs that a text describes, such as ``"3x224x224"``.

        Raises
        ------
        UserError
            If it describes none.
        """
        return cls(tuple(_parsed(part.strip(), text) for part in text.split(",")))

    @classmethod
    def of(cls, value: Given) -> Inputs:
        """Inputs as they are, as their text, or as the shape of one float32 tensor."""
        if isinstance(value, Inputs):
            return value
        return cls.parse(value) if isinstance(value, str) else cls((Input(tuple(map(int, value))),))

    @classmethod
    def from_json(cls, value: Any) -> Inputs:
        """The inputs from what `as_json` returned. Raises UserError if it is nothing of the kind."""
        if isinstance(value, (Inputs, str)) or (
            isinstance(value, (list, tuple)) and all(type(extent) is int for extent in value)
        ):
            return cls.of(value)
        raise UserError(f"{value!r} are no inputs of a network")

    def as_json(self) -> list[int] | str:
        """For a file: the shape of one float32 tensor, else the text."""
        first = self.each[0]
        return list(first.shape) if self.each == (Input(first.shape),) else self.text

    @property
    def text(self) -> str:
        """As `parse` takes it."""
        return ",".join(one.text for one in self.each)

    @property
    def described(self) -> str:
        """For a sentence: ``images of 3x32x32``, ``inputs of 1x16000``."""
        return f"{'inputs' if self.image is None else 'images'} of {self.text}"

    @property
    def image(self) -> tuple[int, int, int] | None:
        """(C, H, W) if one image is all that the network takes."""
        match self.each:
            case (Input((channels, height, width), "float32"),):
                return channels, height, width
        return None

    @property
    def names(self) -> tuple[str | None, ...]:
        """The parameter that each is given as; None gives it by its place."""
        return tuple(one.name for one in self.each)

    @property
    def positions(self) -> int:
        """Places of one channel of a sample, in all inputs together; the cost of a sample grows with them."""
        return sum(one.positions for one in self.each)

    def zeros(self, batch: int = 1) -> Tensors:
        """A batch (N, ...) of zeros for each input."""
        import torch

        return tuple(torch.zeros(batch, *one.shape, dtype=one.tensor_type) for one in self.each)

    def random(self, batch: int, seed: int, ceilings: Sequence[int] | None = None) -> Tensors:
        """A made-up batch, the same for the same seed: normal numbers, and whole ones below each input's ceiling."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        ceilings = ceilings or [CEILING] * len(self.each)
        return tuple(one.random(batch, generator, most) for one, most in zip(self.each, ceilings, strict=True))


Given = Inputs | str | Sequence[int]
"""What a network takes as a person says it: a record, a text, or the shape of one float32 tensor."""


def _is_type(word: str) -> bool:
    """Whether it names a type of numbers, one of `TYPES` or another."""
    return word in TYPES or word in OTHER_TYPES


def _parsed(part: str, text: str) -> Input:
    *words, shape = part.split(":")
    dtype = words.pop() if words and _is_type(words[-1]) else "float32"
    extents = () if shape == SCALAR else shape.split("x")
    if len(words) > 1 or not all(re.fullmatch(r"[1-9]\d*", extent) for extent in extents):
        raise UserError(
            f"'{text}' is not an input: write the shape of one sample, such as 3x224x224 or 1x16000, or {SCALAR} for "
            "one number; write a name or type in front of it, as in ids:int64:128, and commas between several"
        )
    return Input(tuple(map(int, extents)), dtype, *words)
