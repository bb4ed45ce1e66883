"""Restores what running a model changes outside of it: its code's global state, and the random generators.

A copy of a model shares this state with it: the dictionary that a hook writes maps into, a cache in a class or a
module, a global variable. It is found by following the names in the code of the model's own classes and functions.
PyTorch's and Python's own code is not followed, and the content of an ``lru_cache`` is not put back.
"""

from __future__ import annotations

import functools
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

_NOT_FOLLOWED = frozenset({*sys.stdlib_module_names, "torch", "torchvision", "numpy"})


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put everything back when this ends."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices), unchanged(model):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put everything back when this ends but the random generators, so that the next run draws other numbers."""
    restorers = _restorers(model)
    try:
        yield
    finally:
        for restore in restorers:
            restore()


def _restorers(model: nn.Module) -> list[Callable[[], None]]:
    """A function for each thing that can be reached and changed, which undoes the changes."""
    found: list[Callable[[], None]] = []
    seen: dict[int, Any] = {}  # holds what it has seen, so that no number is given twice
    waiting: list[Any] = [model]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        inside, restore = _opened(value)
        waiting += inside
        if restore is not None:
            found.append(restore)
    return found


def _opened(value: Any) -> tuple[list[Any], Callable[[], None] | None]:
    """What a value refers to, and what restores it if it can be changed."""
    if isinstance(value, (torch.Tensor, np.ndarray, types.ModuleType, str, bytes, int, float, types.NoneType)):
        return [], None
    if isinstance(value, dict):
        content = dict(_plain(value).items(value))
        return list(content.values()), functools.partial(_restore_dict, value, content)
    if isinstance(value, (list, deque)):
        items = list(_plain(value).__iter__(value))
        return items, functools.partial(_restore_list, value, items)
    if isinstance(value, set):
        return [], functools.partial(_restore_set, value, set(set.__iter__(value)))
    if isinstance(value, (tuple, frozenset)):
        return list(_plain(value).__iter__(value)), None
    if isinstance(value, types.CellType):
        return _opened_cell(value)
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__], None
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords], None
    if isinstance(value, property):
        return [value.fget, value.fset], None
    if isinstance(value, (staticmethod, classmethod, functools._lru_cache_wrapper)):
        return [value.__wrapped__], None
    if isinstance(value, types.FunctionType):
        return _opened_function(value)
    if not _is_followed(value):
        return [], None
    if isinstance(value, type):
        own = dict(vars(value))
        return [*own.values(), *value.__mro__], functools.partial(_restore_class, value, own)
    return [vars(value), type(value)] if hasattr(value, "__dict__") else [], None


def _is_followed(value: Any) -> bool:
    """Whether a value is the user's: an object of PyTorch's layers is, as hooks may hang there, its class is not."""
    if isinstance(value, (nn.Module, types.SimpleNamespace)):
        return True
    return _is_home(value.__module__ if isinstance(value, type) else type(value).__module__)


def _is_home(module: object) -> bool:
    return str(module).partition(".")[0] not in _NOT_FOLLOWED


def _opened_function(function: types.FunctionType) -> tuple[list[Any], Callable[[], None] | None]:
    inside = [*(function.__closure__ or ()), *(function.__defaults__ or ()), function.__kwdefaults__, vars(function)]
    known = function.__globals__
    if not _is_home(known.get("__name__")):
        return inside, None
    names = _names(function.__code__)
    named = {name: known[name] for name in names if name in known}
    return [*inside, *named.values()], functools.partial(_restore_names, known, names, named)


def _names(code: types.CodeType) -> set[str]:
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _opened_cell(cell: types.CellType) -> tuple[list[Any], Callable[[], None] | None]:
    try:
        content = cell.cell_contents
    except ValueError:  # nothing is in it yet
        return [], None
    return [content], functools.partial(setattr, cell, "cell_contents", content)


def _plain(container: Any) -> Any:
    """The built-in class of a container, whose methods do nothing else than they should.

    One of a library's own may import a module, or make an object, for each item that it is asked for.
    """
    built_in = (OrderedDict, dict, list, deque, set, tuple, frozenset)
    return next(each for each in built_in if isinstance(container, each))


def _restore_dict(holder: dict[Any, Any], content: dict[Any, Any]) -> None:
    plain = _plain(holder)
    now = dict(plain.items(holder))
    if list(map(id, now)) != list(map(id, content)) or any(now[key] is not content[key] for key in content):
        plain.clear(holder)
        for key, value in content.items():
            plain.__setitem__(holder, key, value)


def _restore_list(holder: list[Any] | deque[Any], content: list[Any]) -> None:
    plain = _plain(holder)
    if list(map(id, plain.__iter__(holder))) != list(map(id, content)):
        plain.clear(holder)
        plain.extend(holder, content)


def _restore_set(holder: set[Any], content: set[Any]) -> None:
    set.intersection_update(holder, content)
    set.update(holder, content)


def _restore_names(holder: dict[str, Any], names: set[str], content: dict[str, Any]) -> None:
    for name in names:
        if name not in content:
            holder.pop(name, None)
        elif holder.get(name) is not content[name]:
            holder[name] = content[name]


def _restore_class(kind: type, content: dict[str, Any]) -> None:
    for name in vars(kind).keys() - content.keys():
        delattr(kind, name)
    for name, value in content.items():
        if vars(kind).get(name) is not value:
            setattr(kind, name, value)
