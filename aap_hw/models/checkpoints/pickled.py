"""Reads what a pickle says without running it.

A pickle is a program that names functions and has them called. Python's unpickler and PyTorch's run that program, with
more or fewer functions allowed. Neither is right for checkpoints. With few functions, an option of the training script,
a path or a logger's history is enough to refuse the file. With many, somebody must vouch for what each of them does
with a stranger's arguments. Here no function is ever looked up, imported or called. Python's `pickletools`
takes the pickle apart, and each object becomes a `Made`: a note of what was to be called, and with what. So a training
script's own classes are no obstacle, and nothing is left of a harmful pickle but a note.

Not covered: what a note means; see `tensors` and `contents`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any

# Names of Python 2's modules.
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_ARGUMENT_IS_VALUE = frozenset((*_NUMBERS, *_TEXTS, *_BYTES))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
_LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, eq=False)
class Named:
    """A function or class that a pickle names. It was not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Made:
    """An object that a pickle would make. It was not made.

    Attributes
    ----------
    by : what was to be called, a `Named` unless the pickle is odd.
    arguments : its arguments.
    state : the object's attributes, usually a mapping; None if it has none.
    items : its items, if it is a kind of dictionary.
    elements : its elements, if it is a kind of list or set.
    """

    by: Any
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)

    def is_of(self, module: str, *names: str) -> bool:
        """Whether it was to be made by one of a module's functions or classes."""
        return isinstance(self.by, Named) and self.by.module == module and self.by.name in names


def read(stream: IO[bytes], persistent: Callable[[Any], Any] = lambda identity: None) -> Any:
    """Read one pickle, up to its last byte; what follows in the stream is left.

    Parameters
    ----------
    persistent
        Gives the object for a persistent id, by which the pickle refers to something outside of it.

    Returns
    -------
    Any
        Numbers, texts, bytes, lists, tuples, sets and dictionaries as they were; everything else as a note.

    Raises
    ------
    Exception
        Of any kind, if it is damaged; never raised by something that the pickle names.
    """
    machine = _Machine(persistent)
    for operation, argument, _ in pickletools.genops(stream):
        machine.step(operation.name, argument)
    return machine.pop()


class _Machine:
    """The stack machine that pickles are programs of, without an operation that calls anything."""

    def __init__(self, persistent: Callable[[Any], Any]) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._persistent = persistent

    def pop(self) -> Any:
        return self._stack.pop()

    def step(self, name: str, argument: Any) -> None:
        if name in _ARGUMENT_IS_VALUE:
            self._push(argument)
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name])
        elif name in _EMPTY:
            self._push(_EMPTY[name]())
        elif name in _LENGTHS:
            self._push(tuple(self._last(_LENGTHS[name])))
        elif name.endswith("PUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name.endswith("GET"):
            self._push(self._memo[argument])
        elif name not in ("PROTO", "FRAME", "STOP"):
            self._build(name, argument)

    def _build(self, name: str, argument: Any) -> None:
        match name:
            case "MARK":
                self._below.append(self._stack)
                self._stack = []
            case "POP" if self._stack:
                self.pop()
            case "POP" | "POP_MARK":
                self._to_mark()
            case "DUP":
                self._push(self._stack[-1])
            case "TUPLE":
                self._push(tuple(self._to_mark()))
            case "LIST":
                self._push(self._to_mark())
            case "FROZENSET":
                self._push(frozenset(self._to_mark()))
            case "DICT":
                self._push(_paired(self._to_mark()))
            case "APPEND" | "APPENDS":
                more = self._to_mark() if name == "APPENDS" else self._last(1)
                self._part(list, "elements").extend(more)
            case "SETITEM" | "SETITEMS":
                more = self._to_mark() if name == "SETITEMS" else self._last(2)
                self._part(dict, "items").update(_paired(more))
            case "ADDITEMS":
                more, top = self._to_mark(), self._stack[-1]
                top.update(more) if isinstance(top, set) else self._part(list, "elements").extend(more)
            case "BUILD":
                state = self.pop()
                self._made().state = state
            case "GLOBAL":
                self._push(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self._push(_named(*map(str, self._last(2))))
            case "EXT1" | "EXT2" | "EXT4":
                self._push(Named("copyreg", f"extension {argument}"))
            case "REDUCE" | "NEWOBJ":
                by, arguments = self._last(2)
                self._push(Made(by, tuple(arguments)))
            case "NEWOBJ_EX":
                by, arguments, keywords = self._last(3)
                self._push(Made(by, (*arguments, dict(keywords))))
            case "INST":
                self._push(Made(_named(*argument.split(" ", 1)), tuple(self._to_mark())))
            case "OBJ":
                by, *arguments = self._to_mark()
                self._push(Made(by, tuple(arguments)))
            case "PERSID":
                self._push(self._persistent(argument))
            case "BINPERSID":
                self._push(self._persistent(self.pop()))
            case _:
                raise ValueError(f"it uses {name}")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _last(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def _to_mark(self) -> list[Any]:
        above, self._stack = self._stack, self._below.pop()
        return above

    def _made(self) -> Made:
        top = self._stack[-1]
        if not isinstance(top, Made):
            raise TypeError(f"a {type(top).__name__} has no parts")
        return top

    def _part(self, plain: type[Any], name: str) -> Any:
        """What to add to: the value on top, or this part of the note there."""
        top = self._stack[-1]
        return top if isinstance(top, plain) else getattr(self._made(), name)


def _named(module: str, name: str) -> Named:
    return Named(_RENAMED.get(module, module), name)


def _paired(flat: Iterable[Any]) -> dict[Any, Any]:
    return dict(zip(*[iter(flat)] * 2, strict=True))
