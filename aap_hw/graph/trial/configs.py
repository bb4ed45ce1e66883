"""Numbers that a module keeps as attributes, or in something that it keeps: ``self.width``, ``self.config.width``.

Many modules mostly share one configuration, and what one of them counts by it, others may not. A number in it is
changed in a copy that the module then has alone. A configuration may be a dictionary, whose items are read by key,
``self.config["width"]``, or as attributes, and it may hold others. What copies to itself, as classes and members of an
`Enum` do, is left out, as are modules, whose attributes are their own, and values that an object computes or keeps
under another name.

A function that a module keeps may know numbers of the code that made it: ``Lambda(lambda x: F.pad(x, (0, planes)))``.
The module gets a copy that knows others.
"""

from __future__ import annotations

import copy
import types

import torch
from torch import nn

_NO_CONFIGURATIONS = (nn.Module, torch.Tensor, type, types.ModuleType)


def value_of(module: nn.Module, name: str) -> object:
    """What a module keeps under a name, such as ``"width"`` or ``"config.width"``; None if that cannot be set."""
    holder, _, rest = name.partition(".")
    if not rest:
        return getattr(module, holder, None)
    if name in enclosed(module):
        return _known(vars(module)[holder], rest)
    configuration = vars(module).get(holder)
    value = _read(configuration, rest)
    return value if isinstance(value, (int, list, tuple)) and _can_be_changed(configuration, rest) else None


def set_value(module: nn.Module, name: str, value: object) -> None:
    """Let a module have another value under a name, and no other module."""
    holder, _, rest = name.partition(".")
    if not rest:
        setattr(module, holder, value)
    elif isinstance(kept := getattr(module, holder), types.FunctionType):
        setattr(module, holder, _knowing(kept, rest, value))
    else:
        setattr(module, holder, _changed(kept, rest, value))


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


def _read(configuration: object, name: str) -> object:
    """What a configuration, or one within it, holds under a name; None if it holds nothing there."""
    if isinstance(configuration, _NO_CONFIGURATIONS):
        return None
    first, _, rest = name.partition(".")
    try:
        items = configuration if isinstance(configuration, dict) else {}
        value = items[first] if first in items else getattr(configuration, first)
    except Exception:  # whatever its own code raises
        return None
    return _read(value, rest) if rest else value


def _changed(configuration: object, name: str, value: object) -> object:
    """A copy of a configuration that holds another value under a name; raises `TypeError` if it copies to itself."""
    first, _, rest = name.partition(".")
    made = copy.copy(configuration)
    if made is configuration:
        raise TypeError(f"{configuration!r} cannot be copied")
    if rest:
        value = _changed(_read(configuration, first), rest, value)
    if isinstance(made, dict) and first in made:
        dict.__setitem__(made, first, value)
    if hasattr(made, "__dict__"):
        vars(made)[first] = value  # an object may refuse to be changed, as frozen data classes do
    return made


def _can_be_changed(configuration: object, name: str) -> bool:
    """Whether a copy can hold another value."""
    other = object()
    try:
        return _read(_changed(configuration, name, other), name) is other
    except Exception:  # whatever its own code raises
        return False
