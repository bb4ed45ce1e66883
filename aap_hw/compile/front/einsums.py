"""Sums of products of two tensors by the letters of their axes, and which axes of a product these are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from aap_hw.compile.front.operands import Groups, images_of
from aap_hw.graph.program.call import Call, shape_of


@dataclass(frozen=True)
class Factors:
    """The axes of what is multiplied, and of what is made of it."""

    left: Groups
    right: Groups
    made: Groups


@dataclass(frozen=True)
class Einsum:
    """The sum of products of two tensors, each letter an axis.

    ``left`` and ``right`` are the letters of the operands, ``made`` those of the result.
    """

    operands: tuple[Node, Node]
    left: str
    right: str
    made: str

    @staticmethod
    def of(node: Node) -> Einsum | None:
        """Read it off an operator; None unless it is a product of matrices."""
        call = Call(node)
        read, _, made = str(call["equation"].replace(" ", "")).partition("->")
        letters, tensors = read.split(","), list(call["tensors"])
        if "." in read or not made or len(letters) != 2:
            return None
        sizes = [dict(zip(word, shape_of(each), strict=True)) for word, each in zip(letters, tensors, strict=True)]
        is_alike = all(size == sizes[1].get(letter, size) for letter, size in sizes[0].items())
        is_plain = all(len(set(word)) == len(word) for word in (*letters, made))
        alone = set(letters[0]) ^ set(letters[1])  # letters of one operand alone must not be summed over
        if not is_alike or not is_plain or not alone <= set(made) <= set(read):
            return None
        return Einsum((tensors[0], tensors[1]), letters[0], letters[1], made)

    @property
    def is_of_matrices(self) -> bool | None:
        """Whether the right one of operands (..., rows, columns) is transposed; None for other orders of axes."""
        letters = list(self.made)
        heads, row, column = letters[:-2], letters[-2:-1], letters[-1:]
        inner = [letter for letter in self.left if letter not in self.made]
        if len(self.left) < 2 or len(inner) != 1 or list(self.left) != [*heads, *row, *inner]:
            return None
        if list(self.right) == [*heads, *column, *inner]:
            return True
        return False if list(self.right) == [*heads, *inner, *column] else None

    @property
    def axes(self) -> tuple[str, str, str, str]:
        """Letters of the heads, the rows, the axes that are summed over, and the columns."""
        heads = "".join(letter for letter in self.made if letter in self.left and letter in self.right)
        rows = "".join(letter for letter in self.made if letter not in self.right)
        inner = "".join(letter for letter in self.left if letter not in self.made)
        return heads, rows, inner, "".join(letter for letter in self.made if letter not in self.left)

    def ways(self) -> Iterator[Factors]:
        """The axes of the left and of the right operand, and of the result, by those of the product.

        Several axes that do not lie side by side are no rows: the first of them may be images, which the right operand
        is the same for.
        """
        heads, rows, inner, columns = self.axes
        images = images_of(len(heads) + 2)
        for first, second, rest in (
            (heads[:images], heads[images:], rows),
            *((rows[:many], heads, rows[many:]) for many in range(1, len(rows))),
        ):
            words = (self.left, rest, inner), (self.right, inner, columns), (self.made, rest, columns)
            left, right, made = (
                tuple([word.index(axis) for axis in part if axis in word] for part in (first, second, *matrix))
                for word, *matrix in words
            )
            yield Factors(left, right, made)
