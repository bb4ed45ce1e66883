"""Every tensor of a checkpoint with the keys that lead to it, wherever a script put it.

Covers dictionaries and lists of any kind, whole networks that were pickled (as their `state_dict` would give them), and
the attributes of other objects. Not covered: which of the tensors fit a network; see `candidates`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aap_hw.models.checkpoints.pickled import Made
from aap_hw.models.checkpoints.storages import Damaged
from aap_hw.models.checkpoints.tensors import Stored, tensor_of

# A pickle of a few bytes can nest lists without end, or hold one object very many times.
_DEEPEST, _MOST = 64, 5_000_000


@dataclass(frozen=True)
class Found:
    """A tensor and the keys to it. The last key is its name, with points if it is from a network or a state dict."""

    keys: tuple[str, ...]
    tensor: Stored

    @property
    def name(self) -> str:
        """All keys as one name."""
        return ".".join(self.keys)

    @property
    def place(self) -> str:
        """The keys to the dictionary or network that it is in."""
        return ".".join(self.keys[:-1])


def tensors_in(content: Any) -> list[Found]:
    """All tensors, in the file's order. Raises Damaged if the file has no end, or a tensor is impossible."""
    return list(_Walk().below(content, ()))


def keys_of(content: Any) -> list[str]:
    """The keys of a file that holds a dictionary; else none."""
    return list(map(str, _entries(content))) if isinstance(content, (Mapping, Made)) else []


def foreign_in(content: Any) -> list[str]:
    """Names of the functions and classes, which were not run, that would make what a file holds."""
    values = [content, *_entries(content).values()]
    return list(dict.fromkeys(str(each.by) for each in values if isinstance(each, Made) and not _entries(each)))


class _Walk:
    def __init__(self) -> None:
        self._steps = 0
        self._inside: set[int] = set()

    def below(self, value: Any, keys: tuple[str, ...]) -> Iterator[Found]:
        if value is None or isinstance(value, (int, float, str, bytes)):
            return
        self._steps += 1
        if self._steps > _MOST:
            raise Damaged("it has no end")
        tensor = tensor_of(value)
        if tensor is not None:
            yield Found(keys, tensor)
        elif id(value) not in self._inside and len(keys) < _DEEPEST:
            self._inside.add(id(value))
            if (network := _network_in(value)) is not None:
                for found in self._state_of(network, ()):
                    yield Found((*keys, found.name), found.tensor)
            else:
                for key, inner in _entries(value).items():
                    yield from self.below(inner, (*keys, str(key)))
            self._inside.remove(id(value))

    def _state_of(self, network: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Found]:
        """What ``state_dict`` of a network would hold, from its attributes."""
        passing = set(_elements(network.get("_non_persistent_buffers_set")))
        own = _entries(network["_parameters"]) | {
            name: value for name, value in _entries(network.get("_buffers")).items() if name not in passing
        }
        for name, value in own.items():
            if (tensor := tensor_of(value)) is not None:
                yield Found((*path, str(name)), tensor)
        for name, module in _entries(network["_modules"]).items():
            self._steps += 1
            if (inner := _network_in(module)) is not None and len(path) < _DEEPEST and self._steps <= _MOST:
                yield from self._state_of(inner, (*path, str(name)))


def _network_in(value: Any) -> Mapping[str, Any] | None:
    """The attributes of a network that was pickled as a whole, or None if the value is not one."""
    if isinstance(value, Made):
        for attributes in (value.state, *value.arguments):
            if isinstance(attributes, Mapping) and {"_parameters", "_modules"} <= attributes.keys():
                return attributes
    return None


def _entries(value: Any) -> dict[Any, Any]:
    """What a value holds, by key, attribute or place."""
    match value:
        case Mapping():
            return dict(value)
        case list() | tuple():
            return dict(enumerate(value))
        case Made():
            given: dict[Any, Any] = {}
            for place, argument in enumerate(value.arguments):
                given |= {place: argument} if isinstance(argument, Made) else _pairs(argument)
            slots = value.state if isinstance(value.state, tuple) else (value.state,)
            attributes = {key: inner for part in slots if isinstance(part, Mapping) for key, inner in part.items()}
            return given | attributes | dict(enumerate(value.elements)) | value.items
    return {}


def _pairs(argument: Any) -> dict[Any, Any]:
    """What a dictionary would be made from: another one, or pairs."""
    if isinstance(argument, Mapping):
        return dict(argument)
    if isinstance(argument, list) and all(isinstance(each, (list, tuple)) and len(each) == 2 for each in argument):
        return {key: value for key, value in argument if isinstance(key, str)}
    return {}


def _elements(value: Any) -> list[Any]:
    """What a set holds."""
    if isinstance(value, Made):
        return [each for argument in value.arguments if isinstance(argument, list) for each in argument]
    return list(value) if isinstance(value, (set, frozenset, list, tuple)) else []
