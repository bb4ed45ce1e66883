"""Numbers that a module keeps as attributes, or in something that it keeps: ``self.width``, ``self.config.width``.

Many modules mostly share one configuration, and what one of them counts by it, others may not. A number in it is
changed in a copy that the module then has alone. What copies to itself, as classes and members of an `Enum` do, is left
out, as are modules, whose attributes are their own, and values that an object computes or keeps under another name.

A function that a module keeps may know numbers of the code that made it: ``Lambda(lambda x: F.pad(x, (0, planes)))``.
The module gets a copy that knows others.
"""

from __future__ import annotations

import copy
import inspect
import types

import torch
from torch import nn

_NO_CONFIGURATIONS = (nn.Module, torch.Tensor, type, types.ModuleType)


def value_of(module: nn.Module, name: str) -> object:
    """What a module keeps under a name, such as ``"width"`` or ``"config.width"``; None if that cannot be set."""
    holder, _, leaf = name.rpartition(".")
    if not holder:
        return getattr(module, leaf, None)
    if f"{holder}.{leaf}" in enclosed(module):
        return _known(vars(module)[holder], leaf)
    configuration = vars(module).get(holder)
    if isinstance(configuration, _NO_CONFIGURATIONS) or not hasattr(configuration, "__dict__"):
        return None
    value = inspect.getattr_static(configuration, leaf, None)
    return value if isinstance(value, (int, list, tuple)) and _is_copied(configuration) else None


def set_value(module: nn.Module, name: str, value: object) -> None:
    """Let a module have another value under a name, and no other module."""
    holder, _, leaf = name.rpartition(".")
    if not holder:
        setattr(module, leaf, value)
        return
    if isinstance(function := getattr(module, holder), types.FunctionType):
        setattr(module, holder, _knowing(function, leaf, value))
        return
    configuration = copy.copy(function)
    vars(configuration)[leaf] = value  # an object may refuse to be changed, as frozen data classes do
    setattr(module, holder, configuration)


def enclosed(module: nn.Module) -> list[str]:
    """Names of what the functions that a module keeps know of the code that made them: ``"function.planes"``."""
    functions = {name: each for name, each in vars(module).items() if isinstance(each, types.FunctionType)}
    return [f"{name}.{variable}" for name, each in functions.items() for variable in each.__code__.co_freevars]


def _known(function: types.FunctionType, variable: str) -> object:
    """What a function knows by a name; None if the code that made it has not set the variable."""
    cell = (function.__closure__ or ())[function.__code__.co_freevars.index(variable)]
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _knowing(function: types.FunctionType, variable: str, value: object) -> types.FunctionType:
    """A copy of a function that knows another value of a variable."""
    known = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    known[variable] = types.CellType(value)
    made = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(known.values())
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _is_copied(configuration: object) -> bool:
    try:
        return copy.copy(configuration) is not configuration
    except Exception:  # whatever its own code raises
        return False
