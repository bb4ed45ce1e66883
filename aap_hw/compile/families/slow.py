"""Kernels on the slow path: operators that we have no schedule for, each named by the text of its call.

The text is part of the kernel's key, so it holds no channel counts: ``i`` and ``o`` stand for the kernel's input and
output width. For example, a layer normalisation of 196 tokens is ``aten.layer_norm.default`` with the call
``(x[1,196,o],[384],w[384],w[384],1e-05)->x[1,196,o]``. `front.rules.slow` writes these texts, `library.slow` builds the
kernels.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from aap_hw.compile.families.family import FAMILIES, Family, Shape
from aap_hw.compile.families.spelt import SPELT_OUT
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.errors import UserError

# PyTorch's names for the libraries whose operators are known.
LIBRARIES = ("aten", "torchvision")
# Kinds of tensors: an image (N, C, ...), which lies in memory as (N, ..., C), and, in PyTorch's order, any other
# computed value, a learned weight, and another constant.
IMAGE, PLAIN, WEIGHT, CONSTANT = "image", "x", "w", "c"

_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}


class NoCode(UserError):  # noqa: N818 - an answer about a kernel
    """TVM cannot compile a kernel on the slow path either.

    Parameters
    ----------
    key
        The kernel's.
    why
        What TVM does instead, in words.
    source
        The call in the user's code, if it is known.
    """

    def __init__(self, key: KernelKey, why: str, source: str = "") -> None:
        super().__init__(
            f"{source or f'the operator {name_of(key)}'} has no kernel here, and {why}; replace it in the model, or "
            "leave that part out of it"
        )
        self.key, self._why = key, why

    def __reduce__(self) -> tuple[type[NoCode], tuple[KernelKey, str]]:
        return NoCode, (self.key, self._why)

    def at(self, source: str) -> NoCode:
        """The same error, naming a call in the user's code."""
        return NoCode(self.key, self._why, source)


@dataclass(frozen=True)
class Operand:
    """A tensor that an operator reads or makes.

    Attributes
    ----------
    kind : ``IMAGE``, ``PLAIN``, ``WEIGHT`` or ``CONSTANT``.
    shape : in PyTorch's order of axes.
    dtype : PyTorch's name of the type inside the kernel. Between kernels every value is float32.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape as it lies in memory."""
        n, c, *pixels = self.shape if self.kind == IMAGE else (0, 0)
        return (n, *pixels, c) if self.kind == IMAGE else self.shape

    @property
    def is_constant(self) -> bool:
        """Whether it does not depend on the network's input."""
        return self.kind in (WEIGHT, CONSTANT)


@dataclass(frozen=True)
class SlowCall:
    """One call of an operator at fixed widths.

    Attributes
    ----------
    op : library, name and overload, such as ``aten.layer_norm.default``.
    arguments, named : nested lists of operands, numbers, texts and None.
    output : the result; if there are several, the one at index ``piece``.
    """

    op: str
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    output: Operand
    piece: int | None = None

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(address: Address) -> SlowCall:
        """Read the call off a key, at its widths.

        Raises
        ------
        UserError : it is not the text of a call.
        """
        key = address.key
        inputs, _, output = key.attribute("call").rpartition("->")
        widths = {"i": address.width_in, "o": address.width_out}
        try:
            call, piece = ast.parse(f"op{inputs}", mode="eval").body, None
            if isinstance(call, ast.Subscript):
                piece, call = _value(call.slice, widths), call.value
            assert isinstance(call, ast.Call)
            return SlowCall(
                key.op,
                tuple(_value(argument, widths) for argument in call.args),
                {str(keyword.arg): _value(keyword.value, widths) for keyword in call.keywords},
                _value(ast.parse(output, mode="eval").body, widths),
                piece,
            )
        except (SyntaxError, ValueError, AssertionError) as problem:
            raise UserError(f"'{key}' is not a kernel of this version; profile the device again") from problem

    @property
    def operands(self) -> list[Operand]:
        """The tensors that the operator reads, in the order of its arguments."""
        return list(_operands([*self.arguments, *self.named.values()]))

    def run(self, tensors: Iterable[torch.Tensor], spelt_out: bool = False) -> torch.Tensor:
        """Call the operator, or the function it is spelt out as, with tensors for `operands` in PyTorch's layout."""
        remaining = iter(tensors)

        def filled(argument: Any) -> Any:
            if isinstance(argument, Operand):
                value = next(remaining)
                return value if argument.dtype == "float32" else value.to(getattr(torch, argument.dtype))
            return [filled(item) for item in argument] if isinstance(argument, list) else argument

        library, name, overload = self.op.split(".")
        if library == "torchvision":
            import torchvision  # noqa: F401 - which brings its operators with it
        function = SPELT_OUT.get(name) if spelt_out else None
        function = function or getattr(getattr(getattr(torch.ops, library), name), overload)
        arguments = [filled(argument) for argument in self.arguments]
        result: Any = function(*arguments, **{name: filled(value) for name, value in self.named.items()})
        made: torch.Tensor = result if self.piece is None else result[self.piece]
        return made.to(getattr(torch, self.output.dtype)).to(torch.float32)


def name_of(key: KernelKey) -> str:
    """What a kernel's operator is called, without library and overload."""
    return key.op.split(".")[1]


def is_slow(key: KernelKey) -> bool:
    """Whether a kernel has no schedule of ours."""
    return key.op.partition(".")[0] in LIBRARIES


@lru_cache(maxsize=4096)
def _multiply_accumulates(address: Address) -> int:
    """Multiply-accumulate operations as PyTorch counts them: those of convolutions, matrix products and attention."""
    call = SlowCall.of(address)
    with FlopCounterMode(display=False) as counter:
        call.run(torch.empty(operand.shape, device="meta") for operand in call.operands)
    return int(counter.get_total_flops()) // 2


def _taken(address: Address) -> list[Shape]:
    return [operand.shape for operand in SlowCall.of(address).operands if operand.is_constant]


def _constants(address: Address) -> int:
    return sum(map(math.prod, _taken(address)))


def _output(address: Address) -> Shape:
    return SlowCall.of(address).output.stored


def _operands(values: Iterable[Any]) -> Iterable[Operand]:
    for value in values:
        if isinstance(value, Operand):
            yield value
        elif isinstance(value, list):
            yield from _operands(value)


def length_at(text: str, widths: Mapping[str, int]) -> int:
    """The value of a length in the text of a key, given the widths that its letters stand for.

    Raises
    ------
    ValueError : it is no length.
    """
    length = _value(ast.parse(text, mode="eval").body, widths)
    if not isinstance(length, int):
        raise ValueError(text)
    return length


def _value(node: ast.expr, widths: Mapping[str, int]) -> Any:
    """The value of a part of a text. The text is parsed, never run, because it may come from a file."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=letter) if letter in widths:
            return widths[letter]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, widths)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _ARITHMETIC:
            return _ARITHMETIC[type(sign)](_value(left, widths), _value(right, widths))
        case ast.List(elts=items):
            return [_value(item, widths) for item in items]
        case ast.Subscript(value=place, slice=lengths):
            axes = lengths.elts if isinstance(lengths, ast.Tuple) else [lengths]
            dtype = place.attr if isinstance(place, ast.Attribute) else "float32"
            kind = place.value if isinstance(place, ast.Attribute) else place
            assert isinstance(kind, ast.Name)
            return Operand(kind.id, tuple(_value(axis, widths) for axis in axes), dtype)
    raise ValueError(ast.dump(node))


FAMILIES.register(*LIBRARIES)(Family(_output, _multiply_accumulates, _constants, taken=_taken))
