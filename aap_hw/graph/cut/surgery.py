"""Cutting channels out of an eager model: a copy whose parameters, buffers and layer attributes are shorter.

Works on what `groups` found; knows nothing of graphs.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from itertools import accumulate, chain, pairwise
from operator import index as as_index
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from aap_hw.errors import UserError, closest
from aap_hw.graph.cut.refreshing import refresh_attributes
from aap_hw.graph.cut.scaling import Rescaling, Setting
from aap_hw.graph.groups.blocks import Block
from aap_hw.graph.groups.groups import ChannelGroup
from aap_hw.graph.program.copying import copied
from aap_hw.graph.program.kept import Kept, places_of_tensors
from aap_hw.graph.walk.computed import ComputedWeight
from aap_hw.graph.walk.computed import shorten as shorten_computed
from aap_hw.graph.walk.labels import IntArray

Widths: TypeAlias = Mapping[str, int]


def checked_keep(
    groups: Sequence[ChannelGroup], keep: Mapping[str, Sequence[int]]
) -> dict[str, tuple[ChannelGroup, IntArray]]:
    """Look up the groups in `keep` and sort their indices.

    Raises
    ------
    UserError
        If a group is unknown or frozen, or its indices are empty, not whole numbers, out of range or not
        distinct.
    """
    by_name = {group.name: group for group in groups}
    checked: dict[str, tuple[ChannelGroup, IntArray]] = {}
    for name, indices in keep.items():
        group = by_name.get(name)
        if group is None:
            raise UserError(f"the network has no channel group '{name}'{closest(name, by_name)}")
        if group.frozen is not None:
            raise UserError(f"channel group '{name}' cannot be cut: it {group.frozen}; leave it out of the plan")
        try:
            numbers = sorted(as_index(number) for number in indices)
        except TypeError as error:
            raise UserError(f"channels of '{name}' to keep must be whole numbers: {error}") from error
        if not numbers:
            raise UserError(f"channel group '{name}' must keep at least one of its {group.width} channels")
        if numbers[0] < 0 or numbers[-1] >= group.width:
            wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
            raise UserError(f"channel {wrong} of '{name}' does not exist: it has channels 0 to {group.width - 1}")
        for left, right in pairwise(numbers):
            if left == right:
                raise UserError(f"channel {left} of '{name}' is listed twice; list every kept channel once")
        checked[name] = (group, np.array(numbers, dtype=np.int64))
    return checked


class Removed(nn.Module):
    """Stands where a layer or module of a removed branch was."""

    def forward(self, *given: Any, **named: Any) -> Any:
        """Zeros, as many as there are values in the first tensor, (N, C, ...) or (N, ..., C)."""
        return torch.zeros_like(next(each for each in (*given, *named.values()) if isinstance(each, torch.Tensor)))


class RemovedAttention(Removed):
    """Stands where an `nn.MultiheadAttention` was, which returns its weights, too."""

    def forward(self, *given: Any, **named: Any) -> Any:
        """Zeros, and no weights."""
        return super().forward(*given, **named), None


def removed_blocks(blocks: Iterable[Block], keep: Mapping[str, Sequence[int]]) -> tuple[Block, ...]:
    """The blocks of which a group keeps no channel.

    Raises
    ------
    UserError
        If another group of such a block is to keep some.
    """
    removed = tuple(block for block in blocks if any(name in keep and is_empty(keep[name]) for name in block.groups))
    for block in removed:
        for name in block.groups:
            if name in keep and not is_empty(keep[name]):
                raise UserError(
                    f"channel group '{name}' is to keep channels of a block that is removed with "
                    f"'{block.name}'; leave it out of the plan"
                )
    return removed


def is_empty(indices: object) -> bool:
    """Whether a plan keeps no channel of a group; what is no collection at all is refused elsewhere."""
    return isinstance(indices, Sized) and not len(indices)


def remove(model: nn.Module, layers: Iterable[str]) -> None:
    """Put something that makes zeros in the place of layers, by their paths: a branch of them then adds nothing."""
    for path in layers:
        parent, _, name = path.rpartition(".")
        is_attention = isinstance(model.get_submodule(path), nn.MultiheadAttention)
        setattr(model.get_submodule(parent), name, RemovedAttention() if is_attention else Removed())


def cut(
    model: nn.Module,
    keep: Collection[tuple[ChannelGroup, IntArray]],
    attributes: Sequence[Setting],
    full: Widths,
    kept: Mapping[str, Kept] | None = None,
    rescalings: Iterable[Rescaling] = (),
    computed: Mapping[str, ComputedWeight] | None = None,
) -> nn.Module:
    """Copy `model` without the channels that `keep` leaves out of its groups.

    Parameters
    ----------
    attributes
        What the model's own code reads as counts of channels.
    full
        Width of every group before the cut.
    kept
        Tensors beside the parameters that the model's code keeps, by name.
    rescalings
        Rows of weights that must grow or shrink with a width.
    computed
        Weights that are computed, by the name of the parameter they are computed from.
    """
    kept, computed, removed = kept or {}, computed or {}, removed_positions(keep)
    widths = {**full, **{group.name: stays.size for group, stays in keep}}
    smaller = copied(model)
    for rescaling in rescalings:
        rescaling.apply(smaller, widths, full)
    for source in dict.fromkeys(name for name, _ in removed if name in computed):
        shorten_computed(
            smaller, computed[source], {dim: each for (name, dim), each in removed.items() if name == source}
        )
    places, shortened = _Places(smaller), set[tuple[str, int]]()
    for (name, dim), positions in removed.items():
        if name in computed:
            continue
        # What the code keeps may be a parameter of the model.
        own = places.name_of(kept[name].found_in(smaller)) if name in kept else name
        if own is None:
            kept[name].change(smaller, dim, functools.partial(without, dim=dim, removed=positions), kept.values())
        elif (own, dim) not in shortened:
            _shorten(places, own, dim, positions)
            shortened.add((own, dim))
    for path in {name.rpartition(".")[0] for name, _ in removed if name not in kept and name not in computed}:
        _recompute_weight(smaller.get_submodule(path))
    for module in _around_what_is_shorter(model, smaller):
        refresh_attributes(module)
    for attribute in attributes:
        attribute.set_in(smaller, widths)
    return smaller


def removed_positions(keep: Iterable[tuple[ChannelGroup, IntArray]]) -> dict[tuple[str, int], IntArray]:
    """Which positions of which axes of parameters go."""
    removed: dict[tuple[str, int], list[IntArray]] = defaultdict(list)
    for group, stays in keep:
        gone = np.setdiff1d(np.arange(group.width), stays)
        for axis in group.axes:
            removed[axis.parameter, axis.dim].append(axis.index[gone].ravel())
    return {axis: np.concatenate(positions) for axis, positions in removed.items()}


def without(tensor: torch.Tensor, dim: int, removed: IntArray) -> torch.Tensor:
    """A tensor without some positions of an axis."""
    left = np.setdiff1d(np.arange(tensor.shape[dim]), removed)
    return tensor.detach().index_select(dim, torch.from_numpy(left).to(tensor.device))


class _Places:
    """Where the parameters and buffers of a model are, each under all its names, and in lists of the model's code."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        # The tensors are held, so that none is taken for a later one at its address.
        self._of: dict[int, tuple[torch.Tensor, str, list[tuple[Any, Any]]]] = {}
        for path, module in model.named_modules():
            for store in (module._parameters, module._buffers):
                for leaf, tensor in store.items():
                    if tensor is not None:
                        name = f"{path}.{leaf}".removeprefix(".")
                        self._of.setdefault(id(tensor), (tensor, name, []))[2].append((store, leaf))
        for holder, key, tensor in places_of_tensors(model):
            if id(tensor) in self._of:
                self._of[id(tensor)][2].append((holder, key))

    def name_of(self, tensor: torch.Tensor | None) -> str | None:
        """The first name of a parameter or buffer; None of any other tensor."""
        return self._of[id(tensor)][1] if id(tensor) in self._of else None

    def __getitem__(self, name: str) -> torch.Tensor:
        path, _, leaf = name.rpartition(".")
        tensor: torch.Tensor = getattr(self._model.get_submodule(path), leaf)
        return tensor

    def replace(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Put a tensor in the place of another, wherever that is."""
        _, name, places = self._of[id(old)]
        self._of[id(new)] = new, name, places
        for holder, key in places:
            holder[key] = new


def _shorten(places: _Places, name: str, dim: int, removed: IntArray) -> None:
    """Take positions out of one axis of a parameter or buffer, under all the names that it has."""
    old = places[name]
    new = without(old, dim, removed)
    places.replace(old, nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _recompute_weight(module: nn.Module) -> None:
    """Run PyTorch's own hooks that compute a weight now, so that nobody finds the old one before the next call."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm, BasePruningMethod)):
            hook(module, ())


def _around_what_is_shorter(whole: nn.Module, smaller: nn.Module) -> set[nn.Module]:
    """The modules of a cut model in which a parameter or buffer has another shape than in the whole one."""
    paths: set[str] = set()
    before = _shapes(whole)
    for name, shape in _shapes(smaller).items():
        if before.get(name) != shape:
            paths.update(accumulate(name.split(".")[:-1], "{}.{}".format, initial=""))
    return {smaller.get_submodule(path.removeprefix(".")) for path in paths}


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Shapes of a model's parameters and buffers, under all the names that they have."""
    named = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    return {name: tensor.shape for name, tensor in chain(*named)}
