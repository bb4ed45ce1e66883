"""Numbers that a module keeps as attributes, or in an object that it keeps: ``self.width``, ``self.config.width``.

Many modules mostly share one configuration, and what one of them counts by it, others may not. A number in it is
changed in a copy that the module then has alone. What copies to itself, as classes and members of an `Enum` do, is left
out, as are modules, whose attributes are their own, and values that an object computes or keeps under another name.
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
    configuration = copy.copy(getattr(module, holder))
    vars(configuration)[leaf] = value  # an object may refuse to be changed, as frozen data classes do
    setattr(module, holder, configuration)


def _is_copied(configuration: object) -> bool:
    try:
        return copy.copy(configuration) is not configuration
    except Exception:  # whatever its own code raises
        return False
