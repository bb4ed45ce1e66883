"""Copies of a model that share nothing with it, even if its code keeps odd things on it.

Python's own copy refuses tensors that were computed with gradients (a map that a forward pass kept, the weight that an
old-style weight norm computes). It also leaves functions and weak references that a module keeps pointing to the model
that they were made for. Here such tensors lose their history, and such references point to the copy.
What Python cannot copy at all, such as a lock or an open file, has no part in what a network computes and is shared.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from aap_hw.errors import UserError
from aap_hw.foreign import reason

Module = TypeVar("Module", bound=nn.Module)
Memo = dict[int, Any]


def copied(model: Module) -> Module:
    """A copy of a model, in the state and mode that it is in.

    Raises
    ------
    UserError
        If its own code refuses to be copied.
    """
    shared: list[object] = []
    while True:
        memo: Memo = {id(each): each for each in shared}
        try:
            with _WithoutHistory():
                twin = copy.deepcopy(model, memo)
        except Exception as error:
            found = _not_to_be_copied(error)
            if not found:
                raise UserError(
                    f"this {type(model).__name__} cannot be copied, and only a copy is cut: {reason(error)}; "
                    "keep what is not part of the network outside it"
                ) from error
            shared += found
        else:
            for module in twin.modules():
                _let_functions_follow(vars(module), memo)
            return twin


class _WithoutHistory(TorchFunctionMode):
    """Copies of tensors that were computed are tensors with the same values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            if not tensor.is_leaf or (tensor.grad is not None and not tensor.grad.is_leaf):
                return copy.deepcopy(tensor.detach(), memo)
        return func(*args, **(kwargs or {}))


def _not_to_be_copied(error: Exception) -> list[object]:
    """The object that Python's copy failed at, if that is one without any code of its own."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    is_pythons = isinstance(error, TypeError) and trace is not None and trace.tb_frame.f_code is copy.deepcopy.__code__
    return [trace.tb_frame.f_locals["x"]] if is_pythons and trace is not None else []


def _let_functions_follow(holder: Any, memo: Memo) -> None:
    """Replace what in a copied container is about the model, though Python's copy left it alone, in place."""
    for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
        if isinstance(value, (dict, list)):
            if id(value) not in memo:
                memo[id(value)] = value  # once, however it is nested
                _let_functions_follow(value, memo)
        elif _is_about_model(value, memo, set()):
            holder[key] = _follower(value, memo)


def _is_about_model(value: Any, memo: Memo, seen: set[int]) -> bool:
    if id(value) in memo or id(value) in seen:
        return id(value) in memo
    seen.add(id(value))
    return any(_is_about_model(each, memo, seen) for each in _captured(value))


def _captured(value: Any) -> list[Any]:
    """What a function works with that is not its arguments, or a reference refers to."""
    if isinstance(value, types.MethodType):
        return [value.__self__]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, weakref.WeakValueDictionary):
        return list(value.values())
    if isinstance(value, weakref.WeakKeyDictionary):
        return list(value)
    if isinstance(value, functools._lru_cache_wrapper):
        return [value.__wrapped__]
    if isinstance(value, types.FunctionType):
        return [*(value.__defaults__ or ()), *(each.cell_contents for each in value.__closure__ or () if _is_set(each))]
    return []


def _is_set(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - asking is the only way to know
    except ValueError:
        return False
    return True


def _follower(value: Any, memo: Memo) -> Any:
    """What a copy has instead of something that is about the model."""
    if id(value) in memo or not _is_about_model(value, memo, set()):
        return memo.get(id(value), value)
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _follower(value.__self__, memo))
    if isinstance(value, weakref.ref):
        return weakref.ref(_follower(value(), memo))
    if isinstance(value, weakref.WeakValueDictionary):
        return weakref.WeakValueDictionary({key: _follower(each, memo) for key, each in value.items()})
    if isinstance(value, weakref.WeakKeyDictionary):
        return weakref.WeakKeyDictionary({_follower(key, memo): each for key, each in value.items()})
    if isinstance(value, functools._lru_cache_wrapper):
        return functools.lru_cache(**value.cache_parameters())(_follower(value.__wrapped__, memo))
    cells = [(cell, memo.setdefault(id(cell), types.CellType())) for cell in value.__closure__ or ()]
    follower = types.FunctionType(
        value.__code__, value.__globals__, value.__name__, None, tuple(own for _, own in cells) or None
    )
    memo[id(value)] = follower  # before what it has captured, which may be itself
    for name in (*functools.WRAPPER_ASSIGNMENTS, "__kwdefaults__"):
        setattr(follower, name, getattr(value, name))
    vars(follower).update(vars(value))
    follower.__defaults__ = tuple(_follower(each, memo) for each in value.__defaults__ or ()) or None
    for cell, own in cells:
        if _is_set(cell):
            own.cell_contents = _follower(cell.cell_contents, memo)
    return follower
