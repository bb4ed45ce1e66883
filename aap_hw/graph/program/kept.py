"""Tensors that a model's code keeps outside of its parameters and buffers: position codes, masks, grids, factors.

Some are there from the start, others a forward pass makes and keeps for the next one, in an attribute of a module or in
a dictionary or list there. A program holds them as constants. Those of a channel axis are cut like parameters where a
model has them; where it has none yet, its code makes its own, and `surprises` compares these with what was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

_INNER = frozenset({"_parameters", "_buffers", "_modules"})


@dataclass(frozen=True)
class Kept:
    """Where a tensor is kept.

    Parameters
    ----------
    module
        Path of the module.
    keys
        The name of its attribute; then, if that is a dictionary or a list, the keys on the way to the tensor.
    shape
        Of the tensor.
    """

    module: str
    keys: tuple[Any, ...]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As code would write it, without ``self``."""
        name, *keys = self.keys
        return ".".join(filter(None, (self.module, name))) + "".join(f"[{key!r}]" for key in keys)

    def found_in(self, model: nn.Module) -> torch.Tensor | None:
        """The tensor, if the model has one in its place."""
        holder: Any = vars(model.get_submodule(self.module))
        try:
            for key in self.keys:
                holder = holder[key]
        except (KeyError, IndexError, TypeError):
            return None
        return holder if isinstance(holder, torch.Tensor) else None

    def change(
        self, model: nn.Module, dim: int, shortened: Callable[[torch.Tensor], torch.Tensor], known: Collection[Kept]
    ) -> None:
        """Put a shorter tensor in its place, if the model has one that is as long along ``dim``.

        So are those beside it in a dictionary or list that the program does not read (none of ``known``): they were
        made for inputs of other sizes.
        """
        holder: Any = vars(model.get_submodule(self.module))
        try:
            for key in self.keys[:-1]:
                holder = holder[key]
        except (KeyError, IndexError, TypeError):
            return
        others = {each.keys[-1] for each in known if each.module == self.module and each.keys[:-1] == self.keys[:-1]}
        places = (
            [self.keys[-1]] if len(self.keys) == 1 else list(holder if isinstance(holder, dict) else range(len(holder)))
        )
        for key in places:
            tensor = holder.get(key) if isinstance(holder, dict) else holder[key]
            is_own = key == self.keys[-1] or key not in others
            if not is_own or not isinstance(tensor, torch.Tensor) or tensor.dim() != len(self.shape):
                continue
            if tensor.shape[dim] == self.shape[dim]:
                holder[key] = shortened(tensor)


def kept_tensors(program: ExportedProgram, ran: nn.Module) -> dict[str, Kept]:
    """For each placeholder of a program that stands for a kept tensor, where the model that was exported keeps it."""
    places = {_memory(tensor): (path, keys) for path, keys, tensor in _found(ran)}
    kept: dict[str, Kept] = {}
    for placeholder, name in program.graph_signature.inputs_to_lifted_tensor_constants.items():
        tensor = program.constants.get(name)
        if isinstance(tensor, torch.Tensor) and (place := places.get(_memory(tensor))) is not None:
            kept[placeholder] = Kept(*place, tuple(tensor.shape))
    return kept


def places_of_tensors(model: nn.Module) -> Iterator[tuple[Any, Any, torch.Tensor]]:
    """Tensors in attributes of modules, and in lists and dictionaries there: what holds them, under which key."""
    for path, keys, tensor in _found(model):
        holder: Any = vars(model.get_submodule(path))
        for key in keys[:-1]:
            holder = holder[key]
        yield holder, keys[-1], tensor


def _found(model: nn.Module) -> Iterator[tuple[str, tuple[Any, ...], torch.Tensor]]:
    for path, module in model.named_modules():
        own = {name: value for name, value in vars(module).items() if name not in _INNER}
        for keys, tensor in _inside(own, ()):
            yield path, keys, tensor


def _inside(holder: Any, keys: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
    """Tensors in nested dictionaries and lists, which can be replaced there."""
    if len(keys) > 3:
        return
    for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
        if isinstance(value, torch.Tensor) and value.dim():
            yield (*keys, key), value
        elif type(value) in (dict, list):
            yield from _inside(value, (*keys, key))


def _memory(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
