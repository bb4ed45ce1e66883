"""Products of two computed values: matrix products, and attention, which is two of them with a softmax in between.

A key holds the lengths of the axes in ``shape``, with ``i`` and ``o`` for the widths read and made. It also says where
the values (n, h, row, column) of each tensor lie: with ``left=n;a,b,c,d;e``, value (n, h, row, column) of a tensor of n
values lies at e + a n + b h + c row + d column. A tensor that the key does not mention lies in this order of axes
without gaps. ``constant`` names tensors that are constants of the model, and ``masked_by`` tells which masks are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from aap_hw.compile.families.family import FAMILIES, Family, Shape
from aap_hw.compile.families.slow import length_at
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.errors import UserError

# Axes behind the batch, in the order of a key's ``shape``.
MATMUL, ATTENTION = 4, 5
# What a key calls the operands of attention, and its masks.
OPERANDS, MASKS = ("query", "key", "value"), ("mask", "mask_2")


@dataclass(frozen=True)
class Walk:
    """How the values (N, H, rows, columns) of a tensor lie in memory.

    Attributes
    ----------
    size : values in the tensor.
    strides : from one place to the next along each axis; 0 along an axis that the tensor does not have.
    offset : where the first value is.
    """

    size: int
    strides: tuple[int, ...]
    offset: int = 0

    @staticmethod
    def plain(*lengths: int) -> Walk:
        """That of a tensor whose last axis is contiguous."""
        return Walk(math.prod(lengths), tuple(math.prod(lengths[axis + 1 :]) for axis in range(len(lengths))))


@dataclass(frozen=True)
class MatmulShape:
    """The product of matrices (rows, inner) and (inner, columns) of each head of each image.

    ``constant`` says of both whether they are constants of the model.
    """

    batch: int
    heads: int
    rows: int
    inner: int
    columns: int
    left: Walk
    right: Walk
    constant: tuple[bool, bool]

    @staticmethod
    def of(address: Address) -> MatmulShape:
        """Read it off a key, at its widths.

        Raises
        ------
        UserError : it is no such key.
        """
        read = _Reader(address)
        n, (heads, rows, inner, columns) = address.key.batch, read.lengths(MATMUL)
        left, right = read.walk("left", heads, rows, inner), read.walk("right", heads, inner, columns)
        known = address.key.attribute("constant")
        return MatmulShape(n, heads, rows, inner, columns, left, right, (known == "left", known == "right"))

    @property
    def output(self) -> Shape:
        """Shape of what is made."""
        return self.batch, self.heads, self.rows, self.columns


@dataclass(frozen=True)
class AttentionShape:
    """Attention: of each head of each image, ``queries`` rows attend to ``keys`` rows.

    Attributes
    ----------
    inner : channels of queries and keys.
    columns : channels of values and of what is made.
    query, key, value : how these lie.
    masks : how the masks (N, H, queries, keys) lie: added to the scores, or 0 where a key is hidden.
    constant : which of queries, keys, values and masks are constants of the model, as learned queries are.
    scale : factor of the products.
    by_head : the output lies head by head, (N, H, queries, columns), not query by query.
    shared : how many heads of queries attend to each head of keys and values.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    inner: int
    columns: int
    query: Walk
    key: Walk
    value: Walk
    masks: tuple[Walk, ...]
    constant: tuple[bool, ...]
    scale: float
    by_head: bool
    shared: int = 1

    @staticmethod
    def of(address: Address) -> AttentionShape:
        """Read it off a key, at its widths.

        Raises
        ------
        UserError : it is no such key.
        """
        read, key = _Reader(address), address.key
        heads, queries, keys, inner, columns = read.lengths(ATTENTION)
        shared = int(key.attribute("shared") or 1)
        named = [name for name in MASKS if key.attribute(name)]
        masks = tuple(read.walk(name, heads, queries, keys) for name in named)
        operands = (name in key.attribute("constant").split("+") for name in OPERANDS)
        constant_masks = ("constant" in each for each in (*key.attribute("masked_by").split("+"), ""))
        return AttentionShape(
            key.batch,
            heads,
            queries,
            keys,
            inner,
            columns,
            read.walk("query", heads, queries, inner),
            read.walk("key", heads // shared, keys, inner),
            read.walk("value", heads // shared, keys, columns),
            masks,
            (*operands, *constant_masks)[: len(OPERANDS) + len(masks)],
            float(key.attribute("scale") or 1 / math.sqrt(inner)),
            key.attribute("made") == "heads",
            shared,
        )

    @property
    def operands(self) -> tuple[Walk, ...]:
        """How queries, keys, values and masks lie."""
        return self.query, self.key, self.value, *self.masks

    @property
    def output(self) -> Shape:
        """Shape of what is made."""
        outer = (self.heads, self.queries) if self.by_head else (self.queries, self.heads)
        return self.batch, *outer, self.columns


class _Reader:
    """Reads lengths at widths off a key."""

    def __init__(self, address: Address) -> None:
        self._key: KernelKey = address.key
        self._widths: Mapping[str, int] = {"i": address.width_in, "o": address.width_out}

    def lengths(self, count: int) -> list[int]:
        """The lengths of so many axes."""
        found = self._numbers(self._key.attribute("shape"))
        if len(found) != count:
            raise self._unknown()
        return found

    def walk(self, name: str, *lengths: int) -> Walk:
        """How a tensor lies that has these lengths behind the batch."""
        text = self._key.attribute(name)
        if not text or text == "plain":
            return Walk.plain(self._key.batch, *lengths)
        size, _, rest = text.partition(";")
        strides, _, offset = rest.partition(";")
        walk = Walk(self._numbers(size)[0], tuple(self._numbers(strides)), self._numbers(offset or "0")[0])
        if len(walk.strides) != 1 + len(lengths):
            raise self._unknown()
        return walk

    def _numbers(self, text: str) -> list[int]:
        try:
            return [length_at(each, self._widths) for each in text.split(",")]
        except (SyntaxError, ValueError) as problem:
            raise self._unknown() from problem

    def _unknown(self) -> UserError:
        return UserError(f"'{self._key}' is not a kernel of this version; profile the device again")


def _matmul(address: Address) -> int:
    shape = MatmulShape.of(address)
    return shape.batch * shape.heads * shape.rows * shape.inner * shape.columns


def _attention(address: Address) -> int:
    shape = AttentionShape.of(address)
    return shape.batch * shape.heads * shape.queries * shape.keys * (shape.inner + shape.columns)


def constant_shapes(address: Address) -> list[Shape]:
    """Shapes of the constants that a product reads: one of its matrices, or operands and masks of attention."""
    walks: tuple[Walk, ...]
    known: tuple[bool, ...]
    if address.key.op == "matmul":
        product = MatmulShape.of(address)
        walks, known = (product.left, product.right), product.constant
    else:
        attention = AttentionShape.of(address)
        walks, known = attention.operands, attention.constant
    return [(walk.size,) for walk, is_known in zip(walks, known, strict=True) if is_known]


def _constants(address: Address) -> int:
    return sum(map(math.prod, constant_shapes(address)))


FAMILIES.register("matmul")(
    Family(lambda address: MatmulShape.of(address).output, _matmul, _constants, taken=constant_shapes)
)
FAMILIES.register("attention")(
    Family(lambda address: AttentionShape.of(address).output, _attention, _constants, taken=constant_shapes)
)
