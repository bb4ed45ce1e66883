"""The tensors that a network returns, however its code packs them: alone, in lists, under names, in objects of data.

Their order is that of an exported program's outputs. What else a network returns, such as None, is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from aap_hw.errors import UserError

# What may stand beside tensors without hiding one.
_NO_TENSORS = (
    *(Number, str, bytes, type(None), np.ndarray),
    *(torch.dtype, torch.device, torch.Size, torch.SymInt, torch.SymFloat, torch.SymBool),
)


def output_tensors(returned: object) -> list[Tensor]:
    """The tensors of what a network's ``forward`` returned."""
    return [leaf for leaf in pytree.tree_leaves(plain(returned)) if isinstance(leaf, Tensor)]


def class_scores(returned: object) -> Tensor:
    """The scores that a classifier gives, (N, classes): the one tensor that it returns, alone or packed.

    Raises
    ------
    UserError
        If it returns something else.
    """
    tensors = output_tensors(returned)
    if len(tensors) != 1 or tensors[0].dim() != 2:
        shapes = " and ".join(str(tuple(each.shape)) for each in tensors) or "no tensor"
        raise UserError(
            f"training takes one score for each class, and the network returns {shapes}; let it return scores alone, "
            "or cut it to a budget with --no-training, and train it by your own code"
        )
    return tensors[0]


def output_names(returned: object) -> list[str]:
    """A name for each of them: ``logits`` for one alone, else ``output_`` and where it is, such as ``output_aux_0``.

    No two have the same.
    """
    count = len(output_tensors(returned))
    if count == 1:
        return ["logits"]
    try:
        leaves, _ = pytree.tree_flatten_with_path(plain(returned))
    except ValueError:  # a type that PyTorch was told how to take apart, and not what the parts are called
        leaves = []
    names = [_name(path) for path, leaf in leaves if isinstance(leaf, Tensor)]
    return names if len(set(names)) == count else [f"output_{i}" for i in range(count)]


def plain(returned: object) -> Any:
    """What a network returned, with types that PyTorch cannot take apart replaced by dictionaries, lists and tuples.

    Raises
    ------
    UserError
        If it contains an object in which tensors may be hidden.
    """
    return pytree.tree_map(_plain_leaf, returned)


def _plain_leaf(leaf: object) -> Any:
    if isinstance(leaf, (Tensor, *_NO_TENSORS)):
        return leaf
    if isinstance(leaf, Mapping):
        return plain(dict(leaf))
    if isinstance(leaf, (list, tuple)):
        return plain(list(leaf))
    if dataclasses.is_dataclass(leaf):
        return plain({field.name: getattr(leaf, field.name, None) for field in dataclasses.fields(leaf)})
    raise UserError(
        f"the network returns an object of type {type(leaf).__name__}; return a tensor, or a tuple, list, dictionary, "
        "named tuple or dataclass of tensors"
    )


def _name(path: tuple[Any, ...]) -> str:
    # Keys of dictionaries, places in lists, fields of named tuples.
    steps = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
    return "_".join(["output", *steps])
